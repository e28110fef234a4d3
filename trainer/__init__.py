"""The trainer: reads reviews, trains, evaluates, registers the model with its serving bundle."""
