"""What flows through the compiler: programs of FX or ONNX graphs, their operators, and how both are stored."""
