"""Training of FFN skip gates and their cheap paths."""
