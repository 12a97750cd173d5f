"""What a bundle is made of: a program's graphs, weights and steps as files, and its manifest."""
