"""promote: makes Cloud Run serve what the model registry says, safely."""
