"""An engine in NumPy: all that a new backend needs lies in this folder; `BACKENDS` would have one entry more."""
