"""A running encoder: texts in, vectors or scores of labels out; sounds in, states out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Array, Engine
from adaptc.runtime.bundle.names import ATTENTION_MASK, INPUT_FEATURES, INPUT_IDS, TOKEN_TYPE_IDS
from adaptc.runtime.encoding.batches import batches
from adaptc.runtime.encoding.sound import log_mel, read_sound
from adaptc.runtime.encoding.spec import Activation, EncoderSpec
from adaptc.runtime.encoding.texts import Row, TextReader, Texts, is_single
from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.process import Home
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import check_elements

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What an encoder with labels says of texts.

    Attributes:
        labels: Names of the labels.
        logits: float32 [texts, labels].
        scores: float32 [texts, labels], from 0 to 1; logits, for a model whose labels are no classes.
    """

    labels: tuple[str, ...]
    logits: Floats
    scores: Floats

    @property
    def best(self) -> tuple[str, ...]:
        """The label of the highest score of each text."""
        return tuple(self.labels[index] for index in self.scores.argmax(1))


class EncoderSession:
    """A loaded encoder; threads may share it, and their runs take turns.

    Attributes:
        spec: How it is asked.
        tokenizer: For texts; None where they must come as token ids, or for sounds.
        verified: Whether the bundle's files were compared with their hashes.
        label: Its model and engine, for people.
    """

    def __init__(
        self,
        engine: Engine,
        spec: EncoderSpec,
        tokenizer: Tokenizer | None = None,
        *,
        verified: bool = False,
        label: str = "",
    ) -> None:
        """Put the parts together; most callers want `load`.

        Args:
            engine: Closed with the session.
            spec: How it is asked.
            tokenizer: Of an encoder of texts.
            verified: Whether the bundle's files were compared with their hashes.
            label: Its model and engine, for people.
        """
        self.spec = spec
        self.tokenizer = tokenizer
        self.verified = verified
        self.label = label
        self._engine: Engine | None = engine
        self._output = engine.outputs[0]
        self._names = [each.name for each in engine.inputs]
        self._home = Home()
        self._lock = Lock()
        self._reader = None if spec.text is None else TextReader(spec.text, tokenizer)

    @property
    def width(self) -> int:
        """Numbers of a vector or of a position's state, or of labels."""
        return int(self._output.shape[-1])

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a text; None for an encoder of sounds."""
        return None if self.spec.text is None else self.spec.text.max_tokens

    @property
    def takes_pairs(self) -> bool:
        """Whether it has labels, and takes two texts as one."""
        return bool(self.spec.labels)

    def embed(self, texts: Texts, *, prompt: str | None = None, truncate: bool = False) -> Floats:
        """Make a vector of each text.

        Args:
            texts: A text or its token ids, special ones included; or a list of these, of any lengths.
            prompt: The name of the model's prompt that is written before each text; None for its default.
            truncate: Whether a text of more than `max_tokens` tokens is cut instead of refused.

        Returns:
            float32 [width] of one text, [texts, width] of a list.

        Raises:
            RequestError: the model makes no vectors, or a text is wrong or too long.
            EngineError: the graph fails.
        """
        self._needs("embed", vectors=True)
        vectors = self.run(self.read(texts, prompt=prompt, truncate=truncate))
        return vectors[0] if is_single(texts) else vectors

    def classify(self, texts: Texts, *, truncate: bool = False) -> Classification:
        """Give each text, or each pair of texts, scores of the model's labels.

        Args:
            texts: As for `embed`; a pair is a tuple of two texts.
            truncate: As for `embed`; of a pair, the longer text is cut first.

        Raises:
            RequestError: the model has no labels, or a text is wrong or too long.
            EngineError: the graph fails.
        """
        self._needs("classify", vectors=False)
        logits = self.run(self.read(texts, truncate=truncate))
        return Classification(self.spec.labels, logits, scores_of(logits, self.spec.activation))

    def encode(self, sounds: Any, *, sampling_rate: int = 16000, truncate: bool = False) -> Floats:
        """Make states of each sound.

        Args:
            sounds: float [samples] from -1 to 1 or int16 [samples], of one channel; or a list of these.
            sampling_rate: Samples a second.
            truncate: Whether a sound that is too long is cut instead of refused.

        Returns:
            float32 [positions, width] of one sound, [sounds, positions, width] of a list.

        Raises:
            RequestError: the model reads no sounds, or one is wrong or too long.
            EngineError: the graph fails.
        """
        features = self.features(sounds, sampling_rate=sampling_rate, truncate=truncate)
        states = np.concatenate([self._run({INPUT_FEATURES: each[None]}) for each in features])
        return states[0] if _is_sound(sounds) else states

    def features(self, sounds: Any, *, sampling_rate: int = 16000, truncate: bool = False) -> Floats:
        """The log-mel spectrograms of sounds, float32 [sounds, bands, frames]; arguments and errors as for `encode`."""
        spec = self.spec.sound
        if spec is None:
            raise RequestError("encode: this encoder reads texts; embed or classify is right")
        several = [sounds] if _is_sound(sounds) else check_elements("sounds", sounds, "a sound, or a list of sounds,")
        if not several:
            raise RequestError("sounds: none; one or more are needed")
        given = [
            read_sound(each, spec, sampling_rate, truncate=truncate, where=f"sounds[{at}]")
            for at, each in enumerate(several)
        ]
        return np.stack([log_mel(each, spec) for each in given])

    def read(self, texts: Texts, *, prompt: str | None = None, truncate: bool = False) -> list[Row]:
        """Texts as rows of token ids, for `run`; arguments and errors as for `embed`."""
        if self._reader is None:
            raise RequestError("texts: this encoder reads sounds; encode is right")
        return self._reader.read(texts, prompt, truncate=truncate, pairs=self.takes_pairs)

    def run(self, rows: Sequence[Row]) -> Floats:
        """Run the encoder on rows of any lengths, those of like length together.

        Returns:
            float32 [rows, width], in the order of `rows`.

        Raises:
            EngineError: the graph fails.
        """
        assert self.spec.text is not None, "rows come from `read`"
        result = np.empty((len(rows), self.width), np.float32)
        for places in batches([len(row.ids) for row in rows]):
            result[places] = self._run(padded([rows[at] for at in places], self.spec.text.pad_token_id))
        return result

    def close(self) -> None:
        """Free the graph; a fork frees nothing."""
        if self._home.left:
            return
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """What it reads and gives."""
        reads = "sounds" if self.spec.text is None else f"texts of up to {self.max_tokens} tokens"
        gives = f"scores of {self.width} labels" if self.spec.labels else f"{self.width} numbers"
        return f"<EncoderSession of {reads}, gives {gives}>"

    def _run(self, feeds: Mapping[str, Array]) -> Floats:
        self._home.check("session")
        count = len(next(iter(feeds.values())))
        shape = (count, *(int(size) for size in self._output.shape[1:]))
        output = np.empty(shape, np.float32)
        with self._lock:
            if self._engine is None:
                raise EngineError("session: closed")
            self._engine.bind({name: feeds[name] for name in self._names}, {self._output.name: output})()
        return output

    def _needs(self, what: str, *, vectors: bool) -> None:
        if self.spec.text is None:
            raise RequestError(f"{what}: this encoder reads sounds; encode is right")
        if vectors == bool(self.spec.labels):
            gives = f"gives labels: {', '.join(self.spec.labels)[:80]}" if vectors else "has no labels"
            raise RequestError(f"{what}: this encoder {gives}; {'classify' if vectors else 'embed'} is right")


def padded(rows: Sequence[Row], pad: int) -> dict[str, Array]:
    """Rows as one batch: token ids, mask and types, int64 [rows, tokens] each, filled up at the end."""
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask, types = np.full(shape, pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = row.ids
        types[place, : len(row.ids)] = row.types
        mask[place, : len(row.ids)] = 1
    return {INPUT_IDS: ids, ATTENTION_MASK: mask, TOKEN_TYPE_IDS: types}


def scores_of(logits: Floats, activation: Activation) -> Floats:
    """What an activation makes of logits, float32 [texts, labels]."""
    result: Floats = logits.copy()
    if activation == "sigmoid":
        result[:] = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    elif activation == "softmax":
        shares = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
        result[:] = shares / shares.sum(1, keepdims=True)
    return result


def _is_sound(value: Any) -> bool:
    """Whether it is one sound, not a list of several."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype != object
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (int, float))
