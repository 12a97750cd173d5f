"""Families of decoders: one file each, named by transformers' `model_type`."""
