"""GGUF files: header, config, parameters and tokenizer in transformers' terms."""
