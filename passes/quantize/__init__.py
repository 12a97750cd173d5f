"""Weights in fewer bits: blockwise codes, GPTQ, half precision."""
