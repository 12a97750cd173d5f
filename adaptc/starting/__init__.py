"""A model alone, and the model.yaml that it stands for."""
