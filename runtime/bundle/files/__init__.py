"""Folders and files that get their place whole: written beside it first, and renamed."""
