"""The image of the MLflow tracking server and model registry."""
