"""Checks and measurements on a real GPU: `pytest -m gpu`, and `python -m tests.gpu.measure`; README.md says how."""
