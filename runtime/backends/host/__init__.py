"""Decoders whose KV cache lies in the host's memory, over any engine that runs graphs on arrays."""
