"""What `verify` finds of SmolLM2-135M, right and wrong: `python -m tests.verification.real FOLDER [WEIGHTS ...]`.

The folder keeps the model as a Hugging Face folder, and what is compiled from it in each kind of weights; the GGUF file
that it comes from is tried too. Faults are changes of the source after compiling, as in `tests/verification/wrong.py`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.evaluation.reference import folder_of
from adaptc.runtime import Bundle, open_bundle
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.sources.folder.source import FolderSource
from adaptc.sources.gguf.source import GgufSource
from adaptc.spec.reading import parse_spec, read_spec
from adaptc.verification import probes
from adaptc.verification.kinds.source import text_parts
from adaptc.verification.kinds.verify import verify_bundle
from adaptc.verification.part import Part
from tests.verification import wrong

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2" / "model.yaml"

MODELS: Mapping[str, Callable[[Path], None]] = {
    "none": lambda folder: None,
    "causal mask in the place of none": wrong.config(is_causal=False),
    "other base of RoPE, 100000 → 10000": wrong.config(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "other base of RoPE, 100000 → 90000": wrong.config(rope_parameters={"rope_type": "default", "rope_theta": 9e4}),
    "other epsilon of norms, 1e-5 → 1e-4": wrong.config(rms_norm_eps=1e-4),
    "other activation": wrong.config(hidden_act="gelu"),
    "another end of answers": wrong.changed_end,
}
"""Faults of the folder that need the model to be found."""

_ELSEWHERE = 4
"""How many of these are tried in other weights than int4, each taking a minute."""

TEXTS: Mapping[str, Callable[[Path], None]] = {
    "digits in one piece": wrong.pieces_of_digits,
    "another template": wrong.changed_template,
}
"""Faults of the folder's tokenizer."""

GGUF: Mapping[str, tuple[bytes, bytes]] = {
    "": (b"", b""),
    "tokenizer.ggml.pre": (b"smollm", b"falcon"),
    "tokenizer.ggml.eos_token_id": (b"", b"\x01\0\0\0"),  # <|im_start|>, which ends nothing
    "tokenizer.chat_template": (b"<|im_start|>assistant\n", b"<|im_start|>Assistant\n"),
}
"""Faults of the GGUF file's text by the key whose value is another: bytes in it, and others as long."""


def row(weights: str, name: str, parts: Iterable[Part], seconds: float) -> str:
    """A row of the table: figures where there are any, and the parts that failed."""
    found = {part.name: part for part in parts}
    figures = [
        f"{found[part].figures[figure]:.1g}" if part in found else ""
        for part, figure in (
            ("lowering", "max_logit_error"),
            ("lowering", "mean_kl"),
            ("arithmetic", "mean_kl"),
            ("loss", "mean_kl"),
            ("loss", "top1_agreement"),
            ("weights", "largest_error"),
        )
    ]
    failed = [part.name for part in found.values() if part.verdict == "failed"]
    absent = [part.name for part in found.values() if part.verdict == "not compared"]
    said = ", ".join(failed) or "passed"
    if absent:
        said += f"; not compared: {', '.join(absent)}"
    return f"| {weights} | {name} | {' | '.join(figures)} | {said} | {seconds:.0f} s |\n"


def verified(bundle: Bundle, base: Path) -> tuple[list[Part], float]:
    """What `verify` says of a bundle if its source were what now lies in a folder; and processor seconds."""
    [model] = bundle.manifest.models.values()
    begin = time.process_time()
    with patch.object(FolderSource, "sha256", lambda self: model.sha256):
        parts = list(verify_bundle(bundle, base, threads=1).parts)
    return parts, time.process_time() - begin


def dense(into: Path, cache: Cache) -> tuple[Source, Path]:
    """SmolLM2 of the example: the GGUF file, and into/model as a Hugging Face folder."""
    [model] = read_spec(EXAMPLE).models.values()
    source = find_source(model, EXAMPLE.parent)
    if not (into / "model").exists():
        shutil.copytree(folder_of(source, source.sha256(), cache), into / "model")
    return source, into


def changed(base: Path, into: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a source's folder with a change; the weights are the same file."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(base / "model", into / "model", copy_function=_linked)
    change(into / "model")
    return into


def _linked(source: str, into: str) -> None:
    if source.endswith(".safetensors"):
        Path(into).symlink_to(source)
    else:
        shutil.copy(source, into)


def gguf_rows(source: GgufSource, bundle: Bundle, into: Path) -> Iterable[str]:
    """Each fault of the GGUF file's text, found by llama.cpp and transformers."""
    content = source.path.read_bytes()
    for name, (old, new) in GGUF.items():
        begin = time.process_time()
        file = into / "wrong.gguf"
        file.write_bytes(_other_value(content, name.encode(), old, new))
        _, parts = text_parts(bundle, GgufSource(file, file.name, "gguf"), 1)
        yield row("GGUF", f"another {name}" if name else "none", parts, time.process_time() - begin)
        file.unlink()


def _other_value(content: bytes, key: bytes, old: bytes, new: bytes) -> bytes:
    """A GGUF file with other bytes in the value of a key, after which stands the value's type, 4 bytes."""
    begin = content.index(key) + len(key) + 4 if key else 0
    at = content.index(old, begin)
    return content[:at] + new + content[at + len(new) :]


def main(folder: str, *kinds: str) -> None:
    """Compile SmolLM2 in every kind of weights, and verify each as it is and against every fault."""
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    cache = Cache(into / "cache")
    source, base = dense(into, cache)
    for weights in kinds or ("int4", "int8", "fp32"):
        spec = parse_spec(wrong.SPEC.format(weights=weights).replace("96", "512"), "model.yaml")
        made = into / weights
        bundle = open_bundle(made) if made.exists() else compile_spec(spec, base, made, cache).bundle
        with (
            patch("adaptc.verification.kinds.steps.PROMPTS", probes.PROMPTS[:2]),
            patch("adaptc.verification.kinds.source.texts", partial(probes.texts, drawn=40)),
        ):
            for name, change in list(MODELS.items())[: None if weights == "int4" else _ELSEWHERE]:
                sys.stdout.write(row(weights, name, *verified(bundle, changed(base, into / "wrong", change))))
                sys.stdout.flush()
        for name, change in TEXTS.items():
            begin = time.process_time()
            _, parts = text_parts(
                bundle, FolderSource(changed(base, into / "wrong", change) / "model", "model", "folder"), 1
            )
            sys.stdout.write(row(weights, name, parts, time.process_time() - begin))
    if isinstance(source, GgufSource):
        bundle = compile_spec(read_spec(EXAMPLE), EXAMPLE.parent, into / "gguf", Cache.default()).bundle
        sys.stdout.writelines(gguf_rows(source, bundle, into))


if __name__ == "__main__":
    main(*sys.argv[1:])
