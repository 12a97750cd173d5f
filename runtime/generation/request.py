"""What a caller may ask of a generation, checked once when the request is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeAlias, TypedDict

from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import check_budget, check_loss
from adaptc.runtime.text.detokenize import stop_strings
from adaptc.runtime.text.sampling import Sampling, TokenRule
from adaptc.runtime.validation import check_count, check_elements, check_seconds, shown

_GREEDY = Sampling()
_PRIORITIES = 1000

Stop: TypeAlias = "str | Iterable[str]"


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `Session.generate` and `chat`, and of both for coroutines.

    `Request` says what each means, and `Sampling` what those mean that choose tokens. None is the same as leaving an
    option out. `max_tokens` is another name of `max_new_tokens`, and `sampling` has in one value what the options from
    `temperature` to `rules` say one by one. Of two ways to say the same only one may be used.
    """

    max_new_tokens: int | None
    max_tokens: int | None
    min_new_tokens: int | None
    sampling: Sampling | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    rules: Sequence[Callable[[], TokenRule]] | None
    stop: Stop | None
    stop_token_ids: Iterable[int] | None
    seed: int | None
    deadline: float | None
    priority: int | None
    budget: float | None
    max_loss: float | None
    min_budget: float | None
    route: str | None
    speculate: str | None
    adapter: str | Sequence[str | None] | None
    images: Any
    modalities: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """How a prompt is continued.

    Attributes:
        max_new_tokens: The largest number of tokens to write, from 1; fewer are written if the cache is full before.
        min_new_tokens: The number of tokens to write before any may end the text, from 0: until then end tokens and
            `stop_token_ids` are not chosen, and stop strings are text like any other.
        sampling: How tokens are chosen.
        stop: Strings that end the text and are not part of it. The name of a special token stands for the token, which
            is never in a text.
        stop_token_ids: Tokens that end the text and are not part of it, beside the model's own end tokens.
        seed: From 0; makes sampling repeatable. None draws a new seed.
        deadline: Seconds from now, above 0, after which no further token is written; the result has those before. None
            has no limit.
        priority: Where more requests wait than have room, higher ones come first, and may take the place of lower ones,
            which go on later; from -1000 to 1000.
        budget: How much of the model runs, from 0 (cheapest) to 1 (dense), for bundles with gates or a router; the
            prompt and the first `warmup` positions skip nothing at any budget. None takes the session's.
        max_loss: In the place of a budget: the most that skipping blocks may be expected to cost, in nats a token (0.02
            is about 2 % of perplexity), for bundles whose gates were measured on answers; the cheapest budget that
            keeps it is taken.
        min_budget: The lowest budget that the request takes while the session is too busy for its targets, from 0 to 1,
            see `LoadTargets`. None takes `budget` if there is one, else what the targets say; without targets no budget
            is lowered.
        route: The route of a stitched bundle; None lets its router pick.
        speculate: How next tokens are guessed, so that one step verifies several: "lookup" repeats the text itself,
            "model" asks a smaller model of the bundle, "route" its cheapest route, "budget" the model with blocks
            skipped; "auto" takes what there is, "off" guesses nothing. What is written is the same in any case, and
            what steps take decides how many guesses are verified. None takes the session's, see `load`.
        adapter: The adapter of a bundle that keeps some; None for the weights as they are. No tokens are guessed for a
            request with an adapter.
        images: The images of the prompt, see `Images.insert`.
        modalities: The only modalities to use: without images a prompt is read as the text it is. None uses all that
            the request has.

    Raises:
        RequestError: a value is out of range or of the wrong type.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    sampling: Sampling = _GREEDY
    stop: Stop = ()
    stop_token_ids: Iterable[int] = ()
    seed: int | None = None
    deadline: float | None = None
    priority: int = 0
    budget: float | None = None
    max_loss: float | None = None
    min_budget: float | None = None
    route: str | None = None
    speculate: str | None = None
    adapter: str | Sequence[str | None] | None = None
    images: Any = None
    modalities: Sequence[str] | None = None

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "max_new_tokens": check_count("max_new_tokens", self.max_new_tokens),
            "min_new_tokens": check_count("min_new_tokens", self.min_new_tokens, least=0),
            "priority": check_count("priority", self.priority, _PRIORITIES, -_PRIORITIES),
            "stop": stop_strings(self.stop),
            "stop_token_ids": _token_ids(self.stop_token_ids),
        }
        if not isinstance(self.sampling, Sampling):
            raise RequestError(f"sampling: {shown(self.sampling)}; a Sampling is needed")
        if self.seed is not None:
            checked["seed"] = check_count("seed", self.seed, least=0)
        if self.deadline is not None:
            checked["deadline"] = check_seconds("deadline", self.deadline)
        if self.budget is not None:
            checked["budget"] = check_budget(self.budget)
        if self.max_loss is not None:
            checked["max_loss"] = check_loss(self.max_loss)
            if self.budget is not None:
                raise RequestError("max_loss: it picks the budget, and budget is given too; one of them is right")
        if self.min_budget is not None:
            checked["min_budget"] = check_budget(self.min_budget, "min_budget")
            if self.budget is not None and self.min_budget > self.budget:
                raise RequestError(
                    f"min_budget: {shown(self.min_budget)}; at most budget, which is {shown(self.budget)}, is right"
                )
        if self.modalities is not None:
            names = check_elements("modalities", self.modalities, "a list of names")
            checked["modalities"] = tuple(_name("modalities", each) for each in names)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens: {shown(self.min_new_tokens)}; "
                f"at most max_new_tokens, which is {shown(self.max_new_tokens)}, are right"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return tuple(self.stop)

    @property
    def has_images(self) -> bool:
        """Whether the request brings at least one image."""
        return self.images is not None and not (isinstance(self.images, (list, tuple)) and not self.images)


_SAMPLING = tuple(each.name for each in fields(Sampling))
_OPTIONS = (*(each.name for each in fields(Request)), "max_tokens", *_SAMPLING)


def request_of(options: Mapping[str, Any]) -> Request:
    """The request of keyword arguments, see `GenerateOptions`.

    Raises:
        RequestError: there is no such option, two say the same, or a value is out of range or of the wrong type.
    """
    for name in options:
        if name not in _OPTIONS:
            near = get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_OPTIONS)}"
            raise RequestError(f"{name if name.isidentifier() else shown(name)}: no such option; {hint}")
    named = {name: value for name, value in options.items() if value is not None}
    chosen = {name: named.pop(name) for name in _SAMPLING if name in named}
    if chosen and "sampling" in named:
        raise RequestError(f"sampling: together with {', '.join(chosen)}; one or the other is needed")
    if "max_tokens" in named:
        if "max_new_tokens" in named:
            raise RequestError("max_tokens: together with max_new_tokens, which means the same; one of them is needed")
        named["max_new_tokens"] = check_count("max_tokens", named.pop("max_tokens"))
    if chosen:
        named["sampling"] = Sampling(**chosen)
    return Request(**named)


def _token_ids(value: object) -> tuple[int, ...]:
    each = check_elements("stop_token_ids", value, "a list of token ids")
    return tuple(check_count("stop_token_ids", token, least=0) for token in each)


def _name(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{option}: {shown(value)}; a name is needed")
    return value
