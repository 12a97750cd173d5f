"""StitchLLM: routes through the layers of several models, joined by trained stitches."""
