"""The GPU itself: its memory, streams, events, kernels and graphs, through NVIDIA's own bindings."""
