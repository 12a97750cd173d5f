"""Families of encoders: models that read a whole text, or a sound, at once; one value a file."""
