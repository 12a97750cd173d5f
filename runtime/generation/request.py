"""Read what a caller asks for; what cannot be is said before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.writing import Answer
from adaptc.runtime.model.budget import ANY, Wish
from adaptc.runtime.text.detokenize import Text, stop_strings
from adaptc.runtime.text.sampling import Sampler, Sampling
from adaptc.runtime.text.tokenizer import Tokenizer

Ids: TypeAlias = npt.NDArray[np.int64]
Prompt: TypeAlias = "str | Sequence[int] | Ids"
Prompts: TypeAlias = "list[str] | list[list[int]] | list[Ids]"
Stop: TypeAlias = "str | Iterable[str]"


def is_batch(prompt: Prompt | Prompts) -> bool:
    """Whether this is a list of prompts, not one prompt."""
    return isinstance(prompt, (list, tuple)) and any(not isinstance(p, (int, np.integer)) for p in prompt[:1])


def read_prompt(prompt: Prompt, spec: DecoderSpec, tokenizer: Tokenizer | None) -> Ids:
    """The ids of a prompt: int64 [tokens], at least 1 and at most `max_tokens`.

    Raises:
        RequestError: the prompt is of another kind, empty, too long, or holds ids the model does not have.
    """
    if isinstance(prompt, str):
        ids = np.array(need(tokenizer, "a text as prompt").encode(prompt), np.int64)
    else:
        ids = _read_ids(prompt, spec.vocab_size)
    if len(ids) == 0 and spec.bos_token_id is not None:
        ids = np.array([spec.bos_token_id])
    if len(ids) == 0:
        raise RequestError("prompt: empty, and this model has no BOS token to begin with")
    check_room(ids, spec)
    return ids


def check_room(ids: Ids, spec: DecoderSpec) -> None:
    """Refuse a prompt that is longer than the cache.

    Raises:
        RequestError: it is.
    """
    if len(ids) > spec.max_tokens:
        raise RequestError(
            f"prompt: {len(ids)} tokens; this bundle holds {spec.max_tokens}: "
            "shorten it, or compile with a larger target.max_tokens"
        )


def _read_ids(prompt: Sequence[int] | Ids, vocab: int) -> Ids:
    try:
        ids = np.asarray(prompt)
    except ValueError:  # lists of several lengths
        ids = np.array(None)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise RequestError(f"prompt: {type(prompt).__name__}; a text or a list of token ids is needed")
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if len(wrong):
        raise RequestError(f"prompt: token id {wrong[0]}; ids go from 0 to {vocab - 1}")
    return np.ascontiguousarray(ids, np.int64)


def read_request(
    prompt: Ids,
    spec: DecoderSpec,
    tokenizer: Tokenizer | None,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop,
    seed: int | None,
    index: int = 0,
    wish: Wish = ANY,
) -> Answer:
    """An answer to be written.

    Args:
        prompt: As `read_prompt` gives it.
        spec: What the model expects.
        tokenizer: Spells the answer; None leaves it without text.
        max_new_tokens: Most tokens, from 1.
        sampling: How they are chosen.
        stop: Strings that end the answer; they need a tokenizer.
        seed: From 0; None draws one.
        index: Place in a batch: equal prompts with one seed still get answers of their own.
        wish: How much of the bundle runs, and by which route.

    Raises:
        RequestError: a value is out of range.
    """
    check_count("max_new_tokens", max_new_tokens)
    if not isinstance(sampling, Sampling):
        raise RequestError(f"sampling: {type(sampling).__name__}; a Sampling is needed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise RequestError(f"seed: {seed!r}; a whole number from 0 is needed")
    stops = stop_strings(stop)
    if stops:
        need(tokenizer, "stop strings")
    # The last token is chosen but not read, so it needs no place in the cache.
    limit = min(max_new_tokens, spec.max_tokens - len(prompt) + 1)
    random = np.random.default_rng(None if seed is None else (seed, index))
    text = None if tokenizer is None else Text(tokenizer.decoding(), stops)
    sampler = Sampler(sampling, cast("list[int]", prompt.tolist()), random)
    return Answer(prompt, limit, sampler, text, frozenset(spec.eos_token_ids), wish)


def need(tokenizer: Tokenizer | None, what: str) -> Tokenizer:
    """The tokenizer, for something that cannot be without.

    Raises:
        RequestError: there is none.
    """
    if tokenizer is None:
        raise RequestError(f"{what}: this bundle has no tokenizer; token ids are needed")
    return tokenizer


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is not a whole number from 1 to `most`.

    Raises:
        RequestError: naming the option.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole or (most is not None and cast("int", value) > most):
        needed = "a whole number from 1" + ("" if most is None else f" to {most}")
        raise RequestError(f"{name}: {value!r}; {needed} is needed")
