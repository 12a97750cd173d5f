"""`adaptc write-data`: from a model to a file of chats that it wrote."""

from __future__ import annotations

import importlib.metadata
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adaptc import __version__, runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import SpecError
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.chats import Chat, append_chats, begin_chats, read_chats, replace_metadata
from adaptc.sources.find import find_source
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.schema import ModelSpec, Spec
from adaptc.writing.chats_in_work import ChatsInWork
from adaptc.writing.filters import Requests
from adaptc.writing.frame import Frame
from adaptc.writing.jobs import ChatWriter
from adaptc.writing.recipe import WritingRecipe

SLOTS = {"cuda": 2048, "cpu": 12}
"""Texts written at the same time."""

_FLUSH = 32
"""Chats that are written to the file together."""

_STRIDE = 1_000_003
"""Between the seeds of a run and of the one that goes on with its file: a prime."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class WritingLimits:
    """When writing stops.

    Attributes:
        tokens: Tokens of chats that are in the file then, at least.
        seconds: Longest time of writing, or None.
        slots: Texts written at the same time; None for `SLOTS`.
    """

    tokens: int
    seconds: float | None = None
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class WritingResult:
    """What a run of writing did.

    Attributes:
        chats: Chats in the file.
        tokens: Tokens of these.
        answer_tokens: Tokens of their answers.
        written: Tokens that the model wrote in this run, requests and what was not kept included.
        seconds: Time of writing, without loading or compiling.
        fates: What became of answers and requests, by name: `answered`, `looped`, `repeated` and so on.
    """

    chats: int
    tokens: int
    answer_tokens: int
    written: int
    seconds: float
    fates: dict[str, int]

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model wrote in a second."""
        return self.written / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class WritingPlace:
    """Where chats are written and by what.

    Attributes:
        base: Folder that relative paths of the spec start from.
        output: The file; one that is there is gone on with.
        cache: For the bundle that a CPU writes with.
        device: "cpu" or "cuda".
        torch: Whether torch writes on a CPU too.
        restart: Whether to begin anew, whatever file is there.
    """

    base: Path
    output: Path
    cache: Cache
    device: Device = "cpu"
    torch: bool = False
    restart: bool = False


def model_to_write(spec: Spec, base: Path, name: str | None = None) -> tuple[str, ModelSpec, Source]:
    """Return the model that writes: the named one, or the one of most parameters.

    Raises:
        SpecError: there is none of this name.
        LoadError: a model cannot be found.
    """
    if name is not None and name not in spec.models:
        raise SpecError(f"--model: no model {name!r}; there are: {', '.join(spec.models)}")
    named = {name: spec.models[name]} if name is not None else spec.models
    sources = {each: find_source(model, base).local() for each, model in named.items()}
    chosen = next(iter(sources)) if len(sources) == 1 else max(sources, key=lambda each: _parameters(sources[each]))
    return chosen, spec.models[chosen], sources[chosen]


def write_data(
    spec: Spec,
    recipe: WritingRecipe,
    limits: WritingLimits,
    place: WritingPlace,
    *,
    name: str | None = None,
    without: Iterable[str] = (),
    progress: Progress = SILENT,
) -> WritingResult:
    """Have a model of a spec write chats into a file.

    Args:
        spec: With the model; its passes do not count.
        recipe: How chats are written.
        limits: When to stop.
        place: Where, and by what.
        name: The model, of several; None for the largest.
        without: Texts that no request may be like.
        progress: Told of stages, and of tokens that are kept.

    Raises:
        AdaptcError: the model cannot write chats, the file is of another model or recipe, or cannot be written.
    """
    name, model, source = model_to_write(spec, place.base, name)
    frame = Frame.of(source)
    about = {
        "model": source.origin,
        "sha256": source.sha256(progress),
        "vocabulary": vocabulary(source),
    }
    slots = limits.slots or SLOTS[place.device]
    if place.device == "cuda" or place.torch:
        from adaptc.writing.torch_writer import TorchWriter

        progress.stage(f"load {source.origin}")
        torch_writer = TorchWriter(source, frame.ends, slots=slots, capacity=recipe.window, device=place.device)
        about["engine"] = f"torch, {place.device}"
        return write_chats(frame, about, recipe, limits, place, torch_writer, without=without, progress=progress)
    from adaptc.writing.session_writer import SessionWriter

    about["engine"] = "adaptc, cpu"
    with tempfile.TemporaryDirectory(prefix="adaptc-write-") as scratch:
        into = Path(scratch) / "dense"
        compile_spec(dense_spec(spec, name, model, recipe.window, slots), place.base, into, place.cache, progress)
        with runtime.load(into, "cpu", batch=slots) as session:
            writer = SessionWriter(session, frame.ends, batch=slots)
            return write_chats(frame, about, recipe, limits, place, writer, without=without, progress=progress)


def write_chats(
    frame: Frame,
    about: Mapping[str, str],
    recipe: WritingRecipe,
    limits: WritingLimits,
    place: WritingPlace,
    writer: ChatWriter,
    *,
    without: Iterable[str] = (),
    progress: Progress = SILENT,
) -> WritingResult:
    """Write chats into a file, or go on with the file that is there.

    Args:
        frame: The model's template.
        about: What the file says of the model, and by what it was run.
        recipe: As in `write_data`; so are limits, place, without and progress.
        limits: As there.
        place: As there.
        writer: What writes.
        without: As there.
        progress: As there.

    Raises:
        AdaptcError: as in `write_data`.
    """
    requests = Requests(without)
    kept = _begin(place, {**about, "recipe": _plain(asdict(recipe))}, requests)
    sink = _Sink(place.output, sum(len(each.ids) for each in kept), limits.tokens, progress)
    seed = recipe.seed + _STRIDE * len(kept)
    conversations = ChatsInWork(frame, recipe, requests, sink.keep, seed)
    conversations.wanted = max(0, limits.tokens - sink.tokens)
    start = time.monotonic()
    if conversations.wanted:
        conversations.deadline = None if limits.seconds is None else start + limits.seconds
        sink.begin(start, conversations)
        progress.stage(f"write, {writer.slots} texts at a time")
        try:
            writer.run(conversations, seed)
        finally:
            conversations.finish()
            sink.flush()
    seconds = time.monotonic() - start
    chats = read_chats(place.output)
    result = WritingResult(
        len(chats.chats), chats.tokens, chats.answer_tokens, conversations.written, seconds, dict(conversations.fates)
    )
    if conversations.written:
        runs = [*chats.metadata.get("runs", []), _run_record(result, writer.slots)]
        replace_metadata(place.output, {**chats.metadata, "runs": runs})
    return result


def dense_spec(spec: Spec, name: str, model: ModelSpec, window: int, slots: int) -> Spec:
    """Return the spec of one model without passes, for a CPU, as quickly compiled as it may be."""
    target = {"weights": "int4", "max_tokens": window, "batch": slots}
    return Spec.model_validate(
        {
            "version": spec.version,
            "models": {name: model.model_dump()},
            "target": target,
            "quantize": {"method": "hqq"},  # gptq would read a calibration text first
        }
    )


def _begin(place: WritingPlace, about: Mapping[str, Any], requests: Requests) -> list[Chat]:
    """Begin a file, or go on with the one that is there; return the chats that it has."""
    if place.restart or not place.output.exists():
        place.output.parent.mkdir(parents=True, exist_ok=True)
        libraries = {each: importlib.metadata.version(each) for each in ("transformers", "tokenizers")}
        begin_chats(place.output, {**about, "versions": {"adaptc": __version__, **libraries}, "runs": []})
        return []
    found = read_chats(place.output)
    for key, value in about.items():
        if found.metadata.get(key) != value:
            raise SpecError(
                f"{place.output}: written with another {key.replace('_', ' ')}; another file or --restart is right"
            )
    for chat in found.chats:
        first = next((each["content"] for each in chat.messages if each["role"] == "user"), "")
        requests.add(first)
    return list(found.chats)


class _Sink:
    """Takes chats as they are done and writes them in groups."""

    def __init__(self, path: Path, tokens: int, wanted: int, progress: Progress) -> None:
        self._path, self.tokens, self._wanted, self._progress = path, tokens, wanted, progress
        self._waiting: list[Chat] = []
        self._start = 0.0
        self._conversations: ChatsInWork | None = None

    def begin(self, start: float, conversations: ChatsInWork) -> None:
        self._start, self._conversations = start, conversations
        self._progress.step(min(self.tokens, self._wanted), self._wanted)

    def keep(self, chat: Chat) -> None:
        self.tokens += len(chat.ids)
        self._waiting.append(chat)
        if len(self._waiting) >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        append_chats(self._path, self._waiting)
        self._waiting.clear()
        written = self._conversations.written if self._conversations is not None else 0
        rate = written / max(1e-9, time.monotonic() - self._start)
        self._progress.step(min(self.tokens, self._wanted), self._wanted, f"{rate:.0f} tokens/s written")


def _run_record(result: WritingResult, slots: int) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "slots": slots,
        "seconds": round(result.seconds, 1),
        "tokens_written": result.written,
        "tokens_per_second": round(result.tokens_per_second),
        "fates": dict(sorted(Counter(result.fates).items())),
    }


def _parameters(source: Source) -> int:
    tensors = source.tensors()
    return sum(math.prod(tensors.shape(each)) for each in tensors)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, so that it can be compared with what is read."""
    return json.loads(json.dumps(value))
