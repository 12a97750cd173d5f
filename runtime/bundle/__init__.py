"""A bundle on disk: its manifest, strict JSON, integrity, and writing it whole or not at all."""
