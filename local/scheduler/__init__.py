"""A stand-in of Cloud Scheduler: its API, its clock, its signed calls."""
