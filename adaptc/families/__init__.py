"""The model families that adaptc knows, one file each, and the table of all of them."""
