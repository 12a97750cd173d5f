"""Families of decoders with layer norms, a file each."""
