"""model.yaml: its schema, where each value stands in the file, and what is wrong with it."""
