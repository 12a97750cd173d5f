"""The model families that adaptc knows, one file each: config, names of weights, peculiarities."""
