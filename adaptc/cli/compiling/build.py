"""The command `adaptc build`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BUNDLE
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.runtime.backends.tensorrt.build import BuildProgress
    from adaptc.runtime.bundle.folder import Bundle
    from adaptc.runtime.progress import Progress


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdigit() for part in parts):
            self.fail(f"{value!r}; whole numbers with commas are right", param, ctx)
        return tuple(int(part) for part in parts)


def _renamed(context: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse an option's old name with the new one."""
    if value is not None:
        raise click.UsageError("--slots is called --kv-buckets now", context)


@click.command("build")
@BUNDLE
@click.option(
    "--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Engine to build for; by default the bundle's."
)
@click.option(
    "--sm", type=_Numbers(), default=(), help="Compute capabilities, such as 86,89,120, to build for RTX without a GPU."
)
@click.option(
    "--batch", type=_Numbers(), default=(), help="Numbers of sequences in a step; by default 1 and the bundle's batch."
)
@click.option("--kv-buckets", type=_Numbers(), default=(), help="Cache sizes; by default doubled from 256 up.")
@click.option("--slots", hidden=True, expose_value=False, callback=_renamed)
@click.option(
    "--chunk", type=click.IntRange(1), default=512, show_default=True, help="Largest number of prompt tokens in a step."
)
@click.option(
    "--mode",
    metavar="[auto|on_device|one_step_late]",
    default="auto",
    show_default=True,
    help="Who follows the gates: the GPU in the same step, the host one step late, or whichever is quicker here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def command(
    bundle: Path,
    target: str | None,
    sm: tuple[int, ...],
    batch: tuple[int, ...],
    kv_buckets: tuple[int, ...],
    chunk: int,
    mode: str,
    as_json: bool,
) -> None:
    """Make a bundle ready for this machine.

    Builds a TensorRT bundle's engines. For ONNX Runtime, packs weights as its kernels read them, so that graphs and
    processes share them in memory.
    """
    import dataclasses
    import json

    from adaptc.runtime.backends.tensorrt.build import build_engines
    from adaptc.runtime.backends.tensorrt.engines import EngineFolder
    from adaptc.runtime.bundle.folder import open_bundle

    opened = open_bundle(bundle)
    flavour = target or opened.manifest.target.backend
    if flavour == "onnxruntime":
        if given := [name for name, value in (("--sm", sm), ("--batch", batch), ("--kv-buckets", kv_buckets)) if value]:
            raise click.UsageError(f"{given[0]}: {bundle} is for onnxruntime, which packs for every size")
        _pack(opened, as_json)
        return
    with shown_progress() as progress:
        progress.stage(f"build engines for {flavour}")
        sizes: dict[str, Any] = {"sm": sm, "batches": batch, "kv_buckets": kv_buckets, "chunk": chunk}
        built = build_engines(opened, flavour, **sizes, mode=mode, observe=partial(_tell, progress))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(record) for record in built], indent=2))
    else:
        size, seconds = sum(record.bytes for record in built), sum(record.seconds for record in built)
        click.echo(f"{bundle}: {len(built)} engines for {flavour}; {size / 1e6:.1f} MB, {seconds:.0f} s of building")
    click.echo(EngineFolder(bundle, flavour).report().line, err=as_json)


def _pack(bundle: Bundle, as_json: bool) -> None:
    import dataclasses
    import json

    from adaptc.runtime.backends.onnxruntime_cpu.packing import pack

    with shown_progress() as progress:
        record = pack(bundle, progress)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(record), indent=2))
    else:
        blocks = sum(map(len, record.graphs.values()))
        click.echo(
            f"{bundle.path}: weights of {len(bundle.manifest.graphs)} graphs packed; {record.bytes / 1e6:.1f} MB, "
            f"read in {blocks} places"
        )


def _tell(progress: Progress, built: BuildProgress) -> None:
    record = built.record
    sizes = " ".join(
        f"{name} {least if least == most else f'{least}-{most}'}" for name, (least, _, most) in record.sizes.items()
    )
    how = "there" if built.cached else f"{record.seconds:.1f} s"
    progress.step(built.done, built.total, f"{record.name} {sizes}: {how}")
