"""MOSEL: a graph for each useful subset of a model's modalities."""
