"""What is measured, and against what; each benchmark is one command of the Makefile."""
