"""Running a command as a user does."""

from __future__ import annotations

from click.testing import CliRunner, Result

from adaptc.cli import main


def run(*arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=text, prog_name="adaptc")
