"""The page `/ui` as a browser gets it: files without secrets, which ask for nothing from elsewhere."""
