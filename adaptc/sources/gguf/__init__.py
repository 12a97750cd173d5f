"""Models in GGUF files: the container, its metadata as a config and a tokenizer, its tensors."""
