"""What a caller may ask of a generation, checked once when the request is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.text.detokenize import stop_strings
from adaptc.runtime.text.sampling import Sampling
from adaptc.runtime.validation import check_count

_GREEDY = Sampling()

Stop: TypeAlias = "str | Iterable[str]"


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `Session.generate`, `generate_async` and `chat`; `Request` says what each means."""

    max_new_tokens: int
    sampling: Sampling
    stop: Stop
    seed: int | None
    budget: float | None
    route: str | None
    images: Any
    modalities: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """How a prompt is continued.

    Attributes:
        max_new_tokens: The largest number of tokens to write, from 1; fewer are written if the cache is full before.
        sampling: How tokens are chosen.
        stop: Strings that end the text and are not part of it.
        seed: From 0; makes sampling repeatable. None draws a new seed.
        budget: How much of the model runs, from 0 (cheapest) to 1 (dense), where the bundle has gates or a router; the
            prompt and the first `warmup` positions skip nothing at any budget. None takes the session's.
        route: The route of a stitched bundle; None lets its router pick.
        images: The images of the prompt, see `Images.insert`.
        modalities: The only modalities to use: without images a prompt is read as the text it is. None uses all that
            the request has.

    Raises:
        RequestError: a value is out of range or of the wrong type.
    """

    max_new_tokens: int = 256
    sampling: Sampling = _GREEDY
    stop: Stop = ()
    seed: int | None = None
    budget: float | None = None
    route: str | None = None
    images: Any = None
    modalities: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)
        if not isinstance(self.sampling, Sampling):
            raise RequestError(f"sampling: {type(self.sampling).__name__}; a Sampling is needed")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0):
            raise RequestError(f"seed: {self.seed!r}; a whole number from 0 is needed")
        if self.budget is not None:
            object.__setattr__(self, "budget", check_budget(self.budget))
        object.__setattr__(self, "stop", stop_strings(self.stop))  # an iterator can be read only once

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return tuple(self.stop)

    @property
    def has_images(self) -> bool:
        """Whether the request brings at least one image."""
        return self.images is not None and not (isinstance(self.images, (list, tuple)) and not self.images)
