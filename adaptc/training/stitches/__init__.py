"""Training of stitches between models, and the search for where to stitch."""
