"""A decoder's step as GPU kernels: read from the graph as atoms, put into an order, written as a `DeviceStep`."""
