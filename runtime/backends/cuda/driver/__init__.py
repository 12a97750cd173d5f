"""The GPU itself: its memory, streams, events, kernels and graphs, through NVIDIA's own bindings.

It is written on cuda-bindings and not on cuda.core (1.2.2 was read, with bindings 12.9 and 13.5). cuda.core has devices,
streams, events, programs and graph builders with conditional nodes, but no copy of rows with a stride, no public device
memory that is not of a stream-ordered pool, and no amount of free memory of the current context; a body of a conditional
node is captured on a stream of cuda.core's own. So half of the calls would stay as they are, beside a second library.
"""
