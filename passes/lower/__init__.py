"""FX graphs become ONNX graphs."""
