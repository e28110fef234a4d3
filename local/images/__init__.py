"""Builds the container images and starts them, without a Docker engine."""
