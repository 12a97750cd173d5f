"""What a GPU makes of bad input: damaged and foreign engines, another GPU, too little memory at every place.

Each case is a process of its own, as a library may end its process:

    python -m tests.gpu.bad_input BUNDLE CASE
 Memory is held by plain
allocations. A case says what was told, whether a session works afterwards, and what was not given back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.tensorrt.build import build_engines
from adaptc.runtime.backends.tensorrt.engines import EngineFolder
from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder, tensorrt_engine
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.errors import AdaptcError, EngineError
from adaptc.runtime.text.sampling import Sampler, Sampling

PROMPT = np.arange(1, 9)
MIB = 1 << 20


class Held:
    """All of the GPU's memory but some."""

    def __init__(self, leave: int) -> None:
        self._cuda = Cuda()
        size = max(self._cuda.free_bytes() - leave, 2 * MIB)
        while size >= MIB // 2:
            try:
                while self._cuda.free_bytes() - leave >= size:
                    self._cuda.alloc(size)
            except EngineError:
                pass
            size //= 2
        self.left = self._cuda.free_bytes()

    def release(self) -> None:
        """Give it back."""
        self._cuda.close()


def free_bytes() -> int:
    cuda = Cuda()
    found = cuda.free_bytes()
    cuda.close()
    return found


def told(work: Callable[[], Any]) -> str:
    """What an attempt says: its error, if that is one of ours and one line."""
    try:
        made = work()
    except AdaptcError as error:
        text = str(error)
        return f"one line: {text}" if "\n" not in text else f"SEVERAL LINES: {text}"
    except Exception as error:
        return f"NOT OURS: {type(error).__name__}: {error}"
    if hasattr(made, "close"):
        made.close()
    return "no error"


def written(decoder: Any, prompt: np.ndarray, count: int) -> list[int]:
    """A few tokens."""
    sampler = Sampler(Sampling(), [], np.random.default_rng(0))
    tokens = [int(decoder.prefill(0, prompt, 0.0).argmax())]
    while len(tokens) < count:
        tokens += decoder.choose(tokens[-1:], [sampler])
    return tokens


def again(decoder: Any, before: list[int]) -> None:
    """The same tokens as before."""
    if written(decoder, PROMPT, len(before)) != before:
        raise ValueError("other tokens than before")


def works(bundle: Bundle) -> list[int]:
    """Tokens of a session of its own."""
    decoder = tensorrt_decoder(bundle, 1, 8)
    try:
        return written(decoder, PROMPT, 6)
    finally:
        decoder.close()


def changed(bundle: Bundle, into: Path, change: Callable[[Any, bytes], tuple[Any, bytes]]) -> Bundle:
    """A copy of a bundle whose engines are changed, with records that belong to them."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(bundle.path, into)
    folder = EngineFolder(into, "tensorrt")
    for record in folder.records():
        old, plan = record, folder.read(record)
        record, plan = change(record, plan)
        for file in (folder.plan(old), folder.path / f"{old.key}.json"):
            file.unlink()
        folder.write(record, plan)
    return open_bundle(into, verify=False)


def damaged(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """A byte of each engine is another: their records say so."""
    broken = changed(bundle, scratch, lambda record, plan: (record, plan))
    for plan in EngineFolder(scratch, "tensorrt").path.glob("*.plan"):
        content = bytearray(plan.read_bytes())
        content[len(content) // 2] ^= 1
        plan.write_bytes(bytes(content))
    return {"told": told(lambda: works(broken))}


def foreign(where: str) -> Callable[[Bundle, Path], dict[str, Any]]:
    """An engine that its record knows but the library did not write so."""

    def case(bundle: Bundle, scratch: Path) -> dict[str, Any]:
        def change(record: Any, plan: bytes) -> tuple[Any, bytes]:
            content = bytearray(plan)
            if where == "half":
                content = content[: len(content) // 2]
            elif where == "nothing":
                content = bytearray(b"no engine")
            else:
                at = {"first byte": 0, "header": 24}[where]
                content[at : at + 4] = bytes(255 - byte for byte in content[at : at + 4])
            made = bytes(content)
            return replace(record, sha256=hashlib.sha256(made).hexdigest(), bytes=len(made)), made

        broken = changed(bundle, scratch, change)
        return {"told": told(lambda: works(broken))}

    return case


def version(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Engines of another version of the library."""
    other = changed(bundle, scratch, lambda record, plan: (replace(record, library="10.1.0"), plan))
    return {"told": told(lambda: works(other))}


def sm(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Engines of another GPU."""
    other = changed(bundle, scratch, lambda record, plan: (replace(record, sm=(89,), device="NVIDIA L4"), plan))
    return {"told": told(lambda: works(other))}


def unbuilt(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """More rows than there are engines for; and sizes that were not built."""
    none = changed(bundle, scratch, lambda record, plan: (record, plan))
    shutil.rmtree(scratch / "engines")
    return {
        "told": told(lambda: works(none)),
        "rows": told(lambda: tensorrt_decoder(bundle, 3, 8)),
        "no decoder": told(lambda: tensorrt_engine(bundle, "lm")),
    }


def cache(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """More cache than the card has; nothing of what was taken before stays."""
    manifest = bundle.manifest
    graph = manifest.graphs["lm"]
    assert graph.decoder is not None
    [(heads, width), *_] = graph.decoder.kv
    tokens = (free_bytes() * 2) // (heads * width * 2)
    huge = replace(graph, decoder=replace(graph.decoder, max_tokens=tokens))
    asking = replace(bundle, manifest=replace(manifest, graphs={"lm": huge}))
    return {"tokens": tokens, "told": [told(lambda: works(asking)) for _ in range(5)]}


def loading(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Loads with ever more memory left: each a clear line, until one works."""
    found = {}
    for left in (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        held = Held(left * MIB)
        at = f"{held.left / MIB:.0f} MiB left"
        found[at] = told(lambda: works(bundle))
        held.release()
        if found[at] == "no error":
            break
    return {"told": found}


def running(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Nothing left when a session needs larger engines: its request fails, and when there is memory it goes on."""
    decoder = tensorrt_decoder(bundle, 1, 8)
    assert isinstance(decoder, GpuDecoder)
    before = written(decoder, PROMPT, 6)
    longer = np.tile(PROMPT, 5)
    held = Held(0)
    short = told(lambda: again(decoder, before))
    grown = told(lambda: written(decoder, longer, 6))
    left = held.left
    held.release()
    after = told(lambda: written(decoder, longer, 6))
    same = written(decoder, PROMPT, 6) == before
    decoder.close()
    return {"left": left, "short": short, "told": grown, "afterwards": after, "same_tokens": same}


class _EnoughError(Exception):
    """One engine is built."""


def _enough(_: Any) -> None:
    raise _EnoughError


def building(bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Nothing left while an engine is built; then there is, and it is built."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(bundle.path, scratch)
    shutil.rmtree(scratch / "engines")
    bare = open_bundle(scratch, verify=False)

    def build() -> None:
        with suppress(_EnoughError):
            build_engines(bare, "tensorrt", batches=(1,), kv_buckets=(64,), chunk=1, mode="on_device", observe=_enough)

    told(build)  # what the library loads when it first builds stays
    shutil.rmtree(scratch / "engines")
    before = free_bytes()
    held = Held(0)
    short = told(build)
    left = held.left
    held.release()
    partial = [file.name for file in (scratch / "engines").rglob("*") if file.is_file()]
    after = told(build)
    return {"left": left, "told": short, "files": partial, "afterwards": after, "lost_bytes": before - free_bytes()}


CASES: dict[str, Callable[[Bundle, Path], dict[str, Any]]] = {
    "damaged": damaged,
    "version": version,
    "sm": sm,
    "unbuilt": unbuilt,
    "cache": cache,
    "loading": loading,
    "running": running,
    "building": building,
    **{f"foreign {where}": foreign(where) for where in ("nothing", "half", "first byte", "header")},
}


def bad_bundle(bundle: Bundle, case: str, scratch: Path) -> dict[str, Any]:
    """One case, with a session before and after it."""
    expected = works(bundle) if case != "building" else []
    before = free_bytes()
    found = CASES[case](bundle, scratch / "changed")
    found["works_after"] = works(bundle) == expected if case != "building" else None
    found.setdefault("lost_bytes", before - free_bytes())
    return found


if __name__ == "__main__":
    path, name = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps(bad_bundle(open_bundle(path, verify=False), name, path.parent)))
