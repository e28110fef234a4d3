"""predict: loads one serving bundle from Cloud Storage and answers one question fast."""
