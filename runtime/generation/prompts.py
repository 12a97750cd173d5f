"""Read prompts: text or ids, alone or in a batch, with room for their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from adaptc.runtime.bundle.manifest import DecoderSpec, ModalSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.request import Request
from adaptc.runtime.model.decoder import Ids
from adaptc.runtime.multimodal.images import Encode, Images, uses_images
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import shown

Prompt: TypeAlias = "str | Sequence[int] | Ids"
Prompts: TypeAlias = "list[str] | list[list[int]] | list[Ids]"


def is_batch(prompt: Prompt | Prompts) -> bool:
    """Whether this is a list of prompts, not one prompt; an empty list is a batch of none."""
    return isinstance(prompt, (list, tuple)) and all(not isinstance(p, (int, np.integer)) for p in prompt[:1])


@dataclass(frozen=True, slots=True, eq=False)
class PromptReader:
    """Turns prompts into token ids that a model can read.

    Attributes:
        spec: What the model expects.
        tokenizer: Reads texts; None if the bundle has none.
        modal: The model's modalities; None for a model that never had any but text.
        images: Inserts images into prompts; None for a model that reads text only.
    """

    spec: DecoderSpec
    tokenizer: Tokenizer | None = None
    modal: ModalSpec | None = None
    images: Images | None = None

    def ids(self, prompt: Prompt) -> Ids:
        """The ids of a prompt: int64 [tokens], 1 to `max_tokens`.

        Raises:
            RequestError: the prompt is of another kind, empty, too long, or holds ids the model does not have.
        """
        if isinstance(prompt, str):
            return self.checked(self.need_tokenizer("a text as prompt").encode(prompt))
        return self.checked(prompt)

    def checked(self, prompt: Sequence[int] | Ids) -> Ids:
        """See `ids`, for a prompt that is ids already."""
        ids = self._in_vocabulary(_whole_numbers(prompt))
        if len(ids) == 0 and self.spec.bos_token_id is not None:
            ids = np.array([self.spec.bos_token_id])
        if len(ids) == 0:
            raise RequestError("prompt: empty, and this model has no BOS token to begin with")
        self._check_room(ids)
        return ids

    def read(self, prompt: Prompt, request: Request) -> tuple[Ids, Encode | None]:
        """The ids of a prompt with room for its images, and what encodes these; None if the request uses no images.

        Raises:
            RequestError: as `ids`, or the images or modalities do not fit the prompt or the bundle.
        """
        prompt = self.written(prompt, request) if isinstance(prompt, str) else prompt
        ids = self.ids(prompt)
        if not uses_images(self.modal, self.images, request.has_images, request.modalities):
            return ids, None
        assert self.images is not None
        ids, encode = self.images.insert(ids, request.images)
        self._check_room(ids)
        return ids, encode

    def written(self, text: str, request: Request) -> str:
        """A text as the model reads it if the request uses images; see `Images.written`.

        Raises:
            RequestError: the modalities do not fit the bundle.
        """
        used = uses_images(self.modal, self.images, request.has_images, request.modalities)
        return self.images.written(text) if used and self.images is not None else text

    def need_tokenizer(self, purpose: str) -> Tokenizer:
        """The tokenizer, for something that cannot be done without it.

        Raises:
            RequestError: there is none.
        """
        if self.tokenizer is None:
            raise RequestError(f"{purpose}: this bundle has no tokenizer; token ids are needed")
        return self.tokenizer

    def _in_vocabulary(self, ids: Ids) -> Ids:
        wrong = ids[(ids < 0) | (ids >= self.spec.vocab_size)]
        if len(wrong):
            name = None if self.tokenizer is None or wrong[0] < 0 else self.tokenizer.token(wrong[0])
            token = f"token id {wrong[0]}" if name is None else f"token {shown(name)} with id {wrong[0]}"
            raise RequestError(f"prompt: {token}; ids go from 0 to {self.spec.vocab_size - 1}")
        return np.ascontiguousarray(ids, np.int64)

    def _check_room(self, ids: Ids) -> None:
        if len(ids) > self.spec.max_tokens:
            raise RequestError(
                f"prompt: {len(ids)} tokens; this bundle holds {self.spec.max_tokens}: "
                "shorten it, or compile with a larger target.max_tokens"
            )


def images_per_prompt(images: Any, prompts: int) -> list[Any]:
    """The images of each prompt of a batch.

    Raises:
        RequestError: they are not a list with an entry for each prompt.
    """
    if images is None:
        return [None] * prompts
    if not isinstance(images, (list, tuple)) or len(images) != prompts:
        raise RequestError(f"images: a list for each of the {prompts} prompts is needed, [] or None for one without")
    return list(images)


def adapters_per_prompt(adapter: Any, prompts: int) -> list[Any]:
    """The adapter of each prompt of a batch: of all the same, or a list with one for each.

    Raises:
        RequestError: it is a list without an entry for each prompt.
    """
    if not isinstance(adapter, (list, tuple)):
        return [adapter] * prompts
    if len(adapter) != prompts:
        raise RequestError(
            f"adapter: {len(adapter)} of them; one for each of the {prompts} prompts, or None, is needed"
        )
    return list(adapter)


def _whole_numbers(prompt: object) -> Ids:
    """A prompt as an array of one axis and of whole numbers."""
    try:
        ids = np.asarray(prompt)
    except (ValueError, TypeError, OverflowError, RecursionError):  # such as lists of several lengths
        ids = np.array(None)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise RequestError(f"prompt: {type(prompt).__name__}; a text or a list of token ids is needed")
    return ids
