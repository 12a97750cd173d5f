"""Models of Triton's Python backend: what the few lines of an exported `model.py` stand on."""
