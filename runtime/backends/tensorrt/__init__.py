"""TensorRT and TensorRT-RTX: engines built, stored, chosen and run."""
