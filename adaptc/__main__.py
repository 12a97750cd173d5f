"""`python -m adaptc`."""

from __future__ import annotations

from adaptc.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="adaptc")
