"""A model.yaml whose comments say why each value is what it is, and what else there is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from adaptc.spec.positions import write_yaml
from adaptc.starting.advice import PAYS_FROM, Advice, millions
from adaptc.starting.plain import ONLY_MODEL

_WIDTH = 78
"""Columns; a terminal has 80."""

_GOALS = {"speed": "speed", "quality": "quality", "both": "speed and quality"}
_BUDGETS = {"speed": 0.5, "both": 0.8, "quality": 1.0}
"""Budgets for gates by goal: how much of the model runs."""


def commented(advice: Advice, file: str) -> str:
    """Return the text of a commented model.yaml.

    Args:
        advice: What was chosen.
        file: The name it will have, for the commands in it.

    Returns:
        YAML; `parse_spec` gives the advised spec.
    """
    sections = (_head(advice, file), _models(advice), _target(advice), _skipping(advice, file), _calibration(advice))
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _head(advice: Advice, file: str) -> Iterator[str]:
    name = advice.spec.name or "a model"
    yield from _comment(f"{name}, for {_GOALS[advice.goal]}. Written by `adaptc init`; docs/spec.md has every key.")
    yield "#"
    yield f"#   adaptc check {file}"
    yield f"#   adaptc compile {file} -o bundle"
    yield '#   adaptc generate bundle --prompt "Once upon a time"'
    yield "version: 1"
    yield from _plain({"name": name})


def _models(advice: Advice) -> Iterator[str]:
    model = advice.spec.models[ONLY_MODEL]
    yield "models:"
    yield f"  {ONLY_MODEL}:"
    yield from _comment(
        f"{advice.family}: {millions(advice.parameters)} M parameters in {advice.layers} layers, stored as "
        f"{advice.stored}.",
        4,
    )
    if advice.bits < 8:
        yield from _comment(
            f"These weights were rounded to about {advice.bits} bits before, and int4 rounds them again: with files of "
            "8 or 16 bits of the same model a bundle answers better.",
            4,
        )
    for key, value in model.model_dump(mode="json", exclude_defaults=True).items():
        yield from _plain({key: value}, 4)


def _target(advice: Advice) -> Iterator[str]:
    target = advice.spec.target
    yield "target:"
    yield from _comment("ONNX Runtime runs the bundle on a CPU and on NVIDIA GPUs; tensorrt is another engine.", 2)
    yield from _plain({"backend": target.backend}, 2)
    here = ", ".join(advice.gpus) if advice.gpus else "none that runs bundles is here"
    yield from _comment(f"cpu, or cuda for NVIDIA GPUs ({here}).", 2)
    yield from _plain({"device": target.device}, 2)
    sizes = ", ".join(f"{kind} {millions(size)}" for kind, size in advice.bundle.items())
    yield from _comment(
        f"Megabytes of weights: {sizes}. int4 is the quickest, as every token reads all weights; int8 is close to the "
        "model as it was; fp16 and fp32 keep it.",
        2,
    )
    yield from _plain({"weights": target.weights}, 2)
    if target.weights in ("int4", "int8"):
        yield from _comment("How many weights share a scale: smaller is closer to the model, and slower.", 2)
        yield from _plain({"block_size": target.block_size}, 2)
    yield from _comment(
        f"Prompt and answer together. The model was trained on {advice.trained:,} tokens; each takes "
        f"{advice.cache_token / 1e3:,.1f} kB of memory, when it is used.",
        2,
    )
    yield from _plain({"max_tokens": target.max_tokens}, 2)
    yield from _comment("How many texts are generated at once, at most; a server wants 4 or more.", 2)
    yield from _plain({"batch": target.batch}, 2)


def _skipping(advice: Advice, file: str) -> Iterator[str]:
    if not advice.block:
        return
    megabytes = f"{millions(advice.block)} MB"
    if not advice.skipping_can_pay:
        yield from _comment(
            f"A feed-forward block has {megabytes} here. Skipping blocks (skip_ffn) pays from some "
            f"{PAYS_FROM / 1e6:.0f} MB on, so there is no pass in this file."
        )
        return
    if advice.goal == "quality":
        yield from _comment(
            f"A feed-forward block has {megabytes} here, so skipping blocks (skip_ffn) could pay; it costs some "
            "quality, which is what this file is for."
        )
        return
    yield from _comment(
        f"A feed-forward block has {megabytes} here, so tokens that skip blocks can save time. Gates are trained "
        "first, best on a GPU; then compiling measures whether they pay on its machine. Take away the # of these "
        "lines, and:"
    )
    yield "#"
    yield f"#   adaptc train {file}"
    yield f"#   adaptc compile {file} -o bundle"
    yield "#"
    yield "# passes:"
    yield f"#   - skip_ffn: {{gates: gates.safetensors, budget: {_BUDGETS[advice.goal]}}}"


def _calibration(advice: Advice) -> Iterator[str]:
    if advice.spec.target.weights != "int4":
        return
    yield from _comment("Text like what the model will be used for makes a better int4 than the text that adaptc has.")
    yield "# calibration:"
    yield "#   text: my_texts.txt"


def _plain(values: dict[str, object], indent: int = 0) -> Iterator[str]:
    for line in write_yaml(values).splitlines():
        yield " " * indent + line


def _comment(text: str, indent: int = 0) -> Iterator[str]:
    before = " " * indent + "# "
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=before, subsequent_indent=before, break_long_words=False, break_on_hyphens=False
    )
