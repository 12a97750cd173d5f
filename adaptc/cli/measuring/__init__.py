"""Commands that measure a bundle: whether it is right, how good it is, how fast it is."""
