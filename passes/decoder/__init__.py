"""Rewrites of decoder graphs at ONNX level: KV cache, last-position logits, fusions."""
