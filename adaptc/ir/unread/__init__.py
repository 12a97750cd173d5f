"""Weights that are not read yet, and are read when somebody needs their numbers."""
