"""The pretrained model a bundle was compiled from, run by torch as it is: what a bundle is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.compiler.cache import Cache, key_of
from adaptc.errors import LoadError
from adaptc.evaluation.text import Ids
from adaptc.families.model import model_of
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import SPEC
from adaptc.runtime.model.decoder import Logits
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16")
"""What a reference can compute in."""


def source_of(bundle: Bundle, base: Path) -> Source:
    """Find the pretrained model of a bundle again.

    Args:
        bundle: Made of one model.
        base: The folder that paths in its spec start from.

    Raises:
        LoadError: it is not there, or not the one the bundle was compiled from.
    """
    count = len(bundle.manifest.models)
    if count != 1:
        raise LoadError(f"{bundle.path}: made of {count} models; one is needed to compare with")
    return next(iter(sources_of(bundle, base).values()))


def sources_of(bundle: Bundle, base: Path) -> dict[str, Source]:
    """Find all pretrained models of a bundle again, by their names in its spec.

    Args:
        bundle: Made of them.
        base: The folder that paths in its spec start from.

    Raises:
        LoadError: one is not there, or not the one the bundle was compiled from.
    """
    sources = {}
    for name, model in read_spec(bundle.file(SPEC)).models.items():
        try:
            source = sources[name] = find_source(model, base)
        except LoadError as error:
            raise LoadError(f"{error}; --base names the folder that paths in the spec start from") from error
        if source.sha256() != bundle.manifest.models[name].sha256:
            raise LoadError(f"{model.source}: changed since {bundle.path} was compiled from it; compile again")
    return sources


class Reference:
    """A source model in memory, run eagerly by transformers."""

    def __init__(self, source: Source, dtype: str = "float32", threads: int | None = None) -> None:
        """Read the weights.

        Args:
            source: The model.
            dtype: One of `DTYPES`; what it computes in.
            threads: Threads of torch; None leaves them as they are.

        Raises:
            LoadError: torch or transformers is missing, or the model cannot be read.
        """
        self._torch = torch_of()
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._model = load_eager(source, dtype)

    def logits(self, ids: Ids) -> Logits:
        """Logits at every position: int64 [tokens] -> float32 [tokens, vocab]."""
        torch = self._torch
        with torch.inference_mode():
            found: Logits = self._model(torch.from_numpy(ids)[None]).logits[0].float().numpy()
        return found

    def log_probabilities(self, ids: Ids) -> npt.NDArray[np.float32]:
        """As `Session.score`: float32 [tokens - 1], of all tokens but the first."""
        torch = self._torch
        with torch.inference_mode():
            following = torch.from_numpy(ids)[1:, None]
            logits = self._model(torch.from_numpy(ids)[None]).logits[0, :-1].float()
            chosen = logits.gather(1, following)[:, 0] - logits.logsumexp(1)
        found: npt.NDArray[np.float32] = chosen.numpy()
        return found

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation, for exactly `new_tokens` tokens: an end token does not end it."""
        return greedy(self._model, prompt, new_tokens)


def greedy(model: Any, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """The most likely continuation by a model of transformers and its own cache; an end token does not end it."""
    import torch

    ids: list[int] = []
    step, past = torch.tensor([list(prompt)]), None
    places = torch.arange(len(prompt))[None]  # told: a Qwen2-VL would count on from the image that it saw last
    with torch.inference_mode():
        for _ in range(new_tokens):
            out = model(step, position_ids=places, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            ids.append(int(out.logits[0, -1].argmax()))
            step, places = torch.tensor([ids[-1:]]), places[:, -1:] + 1
    return ids


def folder_of(source: Source, sha256: str, cache: Cache, progress: Progress = SILENT) -> Path:
    """The model as a Hugging Face folder with dense float32 weights; one that is such a folder stays where it is.

    Args:
        source: The model.
        sha256: Its hash.
        cache: Where a folder made from another form is kept.
        progress: Told of stages and steps.

    Raises:
        LoadError: torch or transformers is missing, or the model cannot be read.
    """
    config = source.files().get("config.json")
    if config is not None:
        return config.parent

    def make(into: Path) -> None:
        progress.stage(f"write {source.origin} as a dense Hugging Face folder, once")
        model = load_eager(source, "float32")
        model.save_pretrained(into)
        for name, content in source.tokenizer_files().items():
            (into / name).write_bytes(content)

    torch_of()
    return cache.get("dense", key_of("dense", sha256), make)


def torch_of() -> Any:
    """PyTorch, with transformers beside it.

    Raises:
        LoadError: one of them is not installed.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise LoadError(
            f"{error.name}: not installed; comparing with the source model needs pip install 'adaptc[compile]'"
        ) from error
    return torch


def load_eager(source: Source, dtype: str) -> Any:
    """The model as transformers builds it, in evaluation mode.

    Args:
        source: The model.
        dtype: One of `DTYPES`.

    Raises:
        LoadError: a weight is missing.
    """
    import torch
    from transformers import initialization

    with initialization.no_init_weights():
        model = model_of(source.config(), dtype=torch.float32)
    weights: dict[str, torch.Tensor] = dict(source.tensors())
    absent = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if missing := [name for name in absent if name not in tied]:
        raise LoadError(f"{source.origin}: no tensor {missing[0]}; the file may be incomplete")
    return model.to(getattr(torch, dtype)).eval()
