"""`python -m adaptc`."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["main"]


def main(**options: Any) -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it as quietly as later."""
    try:
        from adaptc.cli import main as commands
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        sys.exit(130)  # adaptc.cli.INTERRUPTED, which there is none of yet
    commands(**options)


if __name__ == "__main__":
    main(prog_name="adaptc")
