"""Hugging Face folders: config, tokenizer and weights as transformers reads them, or a refusal."""
