"""Promotions back and forth under load, on the local Cloud Run."""
