"""Folders that run a bundle elsewhere: with Ray Serve, Triton, Docker or Kubernetes."""
