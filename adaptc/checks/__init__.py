"""What can be known before compiling: whether a spec fits its models, and what this machine has."""
