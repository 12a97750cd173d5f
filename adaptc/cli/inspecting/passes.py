"""The command `adaptc passes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adaptc.passes import Pass


@click.command("passes")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the passes, or explain one."""
    import inspect

    from adaptc.errors import SpecError
    from adaptc.spec.passes import known_passes, outside_passes, pass_class

    if name is not None:
        found = pass_class(name)
        if isinstance(found, str):
            raise SpecError(found)
        click.echo(f"{name}\n\n{inspect.getdoc(found) or 'It has no description.'}\n\nOptions:")
        click.echo("\n".join(_options(found)) or "  none")
        return
    names = [*known_passes(), *(each for each in outside_passes() if each not in known_passes())]
    width = max(map(len, names), default=0)
    for each in names:
        found = pass_class(each)
        text = found if isinstance(found, str) else (inspect.getdoc(found) or "").partition("\n")[0]
        click.echo(f"{each:{width}}  {text}")


def _options(kind: type[Pass]) -> Iterator[str]:
    import dataclasses

    for field in dataclasses.fields(kind):
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"default {field.default!r}"
        elif field.default_factory is not dataclasses.MISSING:
            default = f"default {field.default_factory()!r}"
        yield f"  {field.name}: {field.type}  ({default})"
