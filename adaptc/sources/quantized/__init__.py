"""Weights that other quantizers have packed: a method each, from pieces of a folder's files to codes."""
