"""The GPU itself: its memory, streams, events, kernels and graphs, through NVIDIA's own bindings.

It is written on cuda-bindings and not on cuda.core (1.2.2 was read, with bindings 12.9 and 13.5). cuda.core has
devices, streams, events, programs and graph builders with conditional nodes, but no copy of rows with a stride, no
public device memory outside a stream-ordered pool, and no amount of free memory but through NVML. Nine calls, all
that concern memory, would stay on the bindings beside a second library, which takes another 0.5 s to import.
"""
