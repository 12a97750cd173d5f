"""The argument MODEL of commands that take a model.yaml or a model alone, and the options that stand for its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adaptc.cli.options import SETTINGS

if TYPE_CHECKING:
    from adaptc.spec.schema import Spec

F = TypeVar("F", bound=Callable[..., Any])

MODEL = click.argument("model")

_TARGET = ("weights", "device", "max_tokens", "batch")
"""Options that change one key of `target` each, in any spec."""

_OPTIONS = (
    click.option(
        "--weights", type=click.Choice(["int4", "int8", "fp16", "bf16", "fp32"]), help="How weights are stored."
    ),
    click.option(
        "--quantize", type=click.Choice(["gptq", "nearest", "hqq"]), help="How the codes of int4 weights are chosen."
    ),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where the bundle shall run."),
    click.option("--max-tokens", type=int, help="Prompt and answer together, at most."),
    click.option("--batch", type=int, help="How many texts are generated at once, at most."),
    click.option("--revision", help="Branch, tag or commit of a hub id; org/name@REVISION says the same."),
    click.option("--adapter", "adapters", multiple=True, metavar="FOLDER[=WEIGHT]", help="Merge this LoRA adapter."),
    click.option("--gates", metavar="FILE", help="Skip feed-forward blocks by these trained gates."),
    click.option(
        "--budget",
        type=click.FloatRange(0, 1),
        help="How much runs by default, 1 is all. Without --gates the same blocks are skipped for every token.",
    ),
    SETTINGS,
)


def model_options(command: F) -> F:
    """Add the options that stand for keys of a spec; the command takes them as `options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Given:
    """The spec that a command line names.

    Attributes:
        spec: The spec.
        base: Folder that its paths start from.
        plain: Whether a model was given and no model.yaml.
    """

    spec: Spec
    base: Path
    plain: bool


def read_model(model: str, settings: Iterable[str], **options: Any) -> Given:
    """Return the spec of a model.yaml or of a model alone, changed by what options say.

    Args:
        model: The argument MODEL.
        settings: What `--set` gave.
        options: Values of `model_options` by their names, without the settings.

    Raises:
        AdaptcError: there is no such model.yaml or model, or the spec is wrong.
        click.UsageError: an option that a model.yaml has a place of its own for.
    """
    from adaptc.spec.reading import read_spec
    from adaptc.starting.argument import PlainModel, read_argument
    from adaptc.starting.plain import PlainOptions, plain_spec

    given = [f"target.{name}={options[name]}" for name in _TARGET if options[name] is not None]
    if options["quantize"] is not None:
        given.append(f"quantize.method={options['quantize']}")
    overrides = [*given, *settings]
    named = read_argument(model)
    if isinstance(named, PlainModel):
        own = PlainOptions(options["revision"], options["adapters"], options["gates"], options["budget"])
        return Given(plain_spec(named, own, overrides), Path(), plain=True)
    if named.note:
        click.echo(f"note: {named.note}", err=True)
    for name, key in (
        ("revision", "models.NAME.revision"),
        ("adapters", "models.NAME.adapters"),
        ("gates", "passes"),
        ("budget", "passes"),
    ):
        if options[name]:
            option = name.removesuffix("s") if name == "adapters" else name
            raise click.UsageError(
                f"--{option} is for a model alone; {named.path} has {key} for it, which --set changes"
            )
    return Given(read_spec(named.path, overrides), named.path.parent, plain=False)
