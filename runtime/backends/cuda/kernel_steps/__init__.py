"""Steps that are kernels of ours alone: weights packed for them, values, launches."""
