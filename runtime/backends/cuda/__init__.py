"""Decoders on a CUDA device: captured steps, kernels, memory."""
