"""Families of decoders whose feed-forward blocks are mixtures of experts, a file each."""
