"""Where pretrained models come from: folders, the hub, GGUF files, modules; configs, tokenizers and weights."""
