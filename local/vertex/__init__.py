"""A stand-in of Vertex AI's custom jobs and of the log that they write."""
