"""The steps of cloudbuild.yaml."""
