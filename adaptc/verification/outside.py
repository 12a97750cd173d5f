"""The source model as transformers itself reads and runs it: no loader, family or tokenizer of adaptc takes part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.evaluation.reference import torch_of
from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.sources.adapters.source import AdaptedSource
from adaptc.sources.base import Source
from adaptc.sources.gguf.source import GgufSource
from adaptc.sources.quiet import quiet_transformers
from adaptc.verification.parity import Passage, Predictions

_SHORT = 64
"""Prompts of so many tokens are continued side by side: of longer ones others would be mostly padding."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where transformers finds a source.

    Attributes:
        folder: What `from_pretrained` is given.
        gguf: Name of the GGUF file in it; None for a folder in Hugging Face's form.
    """

    folder: Path
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        own = {} if self.gguf is None else {"gguf_file": self.gguf}
        return {"local_files_only": True, "trust_remote_code": False, **own}


def place_of(source: Source) -> Place | None:
    """Where transformers finds a source; None if it is of a kind that only adaptc has.

    Of a source with adapters it is the place of its base.
    """
    source = source.local()
    if isinstance(source, AdaptedSource):
        return place_of(source.base)
    if isinstance(source, GgufSource):
        return Place(source.path.parent, source.path.name)
    config = source.files().get("config.json")
    return None if config is None else Place(config.parent)


def version() -> str:
    """Name and version of transformers, for what was compared with it."""
    import transformers

    return f"transformers {transformers.__version__}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' warnings and bars off the terminal, where they would stand between a command's lines."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), redirect_stderr(StringIO()):  # its bar of GGUF tensors has no setting
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def auto_tokenizer(place: Place) -> Any:
    """Transformers' own tokenizer of a source.

    Raises:
        LoadError: transformers has none for it.
    """
    torch_of()
    from transformers import AutoTokenizer

    with foreign("transformers reads no tokenizer here"), quiet():
        return AutoTokenizer.from_pretrained(place.folder, **place.options)


def load_model(place: Place) -> tuple[Any, str]:
    """The model by `from_pretrained`, in float32 with transformers' plain attention, and the class that loads it.

    Raises:
        LoadError: transformers cannot read it, or finds no values for a weight, which it would make up.
    """
    torch = torch_of()
    import transformers

    with foreign("transformers does not read this model"), quiet():
        config = transformers.AutoConfig.from_pretrained(place.folder, **place.options)
        texts = type(config) in transformers.AutoModelForCausalLM._model_mapping
        kind = "AutoModelForCausalLM" if texts else "AutoModelForImageTextToText"
        model, loading = getattr(transformers, kind).from_pretrained(
            place.folder,
            config=config,  # of a GGUF file it takes seconds to read again
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **place.options,
        )
    if missing := sorted(loading["missing_keys"]):
        raise LoadError(f"transformers finds no weight {missing[0]} and would make it up")
    return model.eval(), kind


class TorchModel:
    """A language model of transformers, run by torch; see `Writer`."""

    def __init__(self, model: Any, threads: int | None = None) -> None:
        """Take a model.

        Args:
            model: As transformers builds it; its weights may be replaced at any time.
            threads: Threads of torch; None leaves them as they are.
        """
        self._torch = torch_of()
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._model = model

    def predictions(self, sample: Passage) -> Predictions:
        """See `Model`; without steps."""
        return Predictions(self.logits(sample.ids, sample.last))

    def logits(self, ids: Ids, last: int = 0) -> Logits:
        """Logits at every position, or at the last ones: int64 [tokens] -> float32 [last, vocab]."""
        torch = self._torch
        with torch.inference_mode():
            out = self._model(torch.from_numpy(ids)[None], use_cache=False, logits_to_keep=last)
            found: Logits = out.logits[0].float().numpy()
        return found

    def write(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """See `Writer`; with a cache and many at once, as this only chooses the texts that are compared."""
        short = [place for place, prompt in enumerate(prompts) if len(prompt) <= _SHORT]
        long = [[place] for place, prompt in enumerate(prompts) if len(prompt) > _SHORT]
        written: dict[int, list[int]] = {}
        for places in [short, *long] if short else long:
            found = self._continuations([prompts[place] for place in places], new_tokens)
            written |= dict(zip(places, found, strict=True))
        return [written[place] for place in range(len(prompts))]

    def _continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Continue prompts side by side, shorter ones with padding before them."""
        torch, width = self._torch, max(map(len, prompts))
        step = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        written, past = [], None
        with torch.inference_mode():
            for _ in range(new_tokens):
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
                given = {} if bool(mask.all()) else {"attention_mask": mask}
                out = self._model(
                    step, position_ids=places, past_key_values=past, use_cache=True, logits_to_keep=1, **given
                )
                step, past = out.logits[:, -1].argmax(1, keepdim=True), out.past_key_values
                mask = torch.cat([mask, torch.ones_like(step)], 1)
                written.append(step)
        ids: list[list[int]] = torch.cat(written, 1).tolist()
        return ids
