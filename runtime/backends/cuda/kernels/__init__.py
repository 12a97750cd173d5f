"""Our own kernels: CUDA C in `.cu` files, and what launches it."""
