"""Passes that fit encoders to ONNX Runtime."""
