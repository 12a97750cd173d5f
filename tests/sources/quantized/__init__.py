"""Folders whose weights others have quantized."""
