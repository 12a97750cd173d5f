"""Families of multimodal language models: one file each, named by transformers' `model_type`."""
