"""Choose the next token from logits.

The filters and their order are those of transformers: repetition penalty, temperature, top-k, top-p, min-p. Rules of
the caller, and the bias and the penalties of OpenAI's API, come before them. Each filter keeps the tokens above some
logit, so they are found by comparing, and the vocabulary is hardly ever sorted.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.validation import check_count, check_elements, check_number, shown

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_LANE = 64  # values that share a maximum in `_bound`: few enough to tell, many enough to save work
_RUN = 256  # values that share a sum in `_position`
_COLD = 1e-6  # a lower temperature is 0: it would only overflow


class TokenRule(Protocol):
    """Follows one sequence and may change what its next token is chosen from, such as a grammar."""

    def before(self, logits: Logits) -> None:
        """See, and change in place, the logits of the next token: float32 [vocab], as the model gave them.

        Rules come in their order, before any penalty; -inf is never chosen. A token that is nearly as likely as another
        one may be asked for again, with logits that were computed anew.
        """

    def after(self, token: int) -> None:
        """Take note of the token that was chosen."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; by default the most likely one.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token. At most 100.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens that together have this probability, in (0, 1].
        min_p: Keep tokens at least this likely, relative to the most likely one, in [0, 1].
        repetition_penalty: Above 1 makes tokens that are already there less likely, from 0.001 to 100.
        presence_penalty: Taken off the logits of tokens that were written, -2 to 2.
        frequency_penalty: Taken off as often as a token was written, -2 to 2.
        logit_bias: Numbers from -100 to 100 that are added to the logits of tokens, by token id.
        rules: What makes a `TokenRule` for each sequence; see there.

    Raises:
        RequestError: a value is out of its range or not a number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    rules: Sequence[Callable[[], TokenRule]] = ()

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "temperature": check_number("temperature", self.temperature, "a number from 0 to 100", 0, 100),
            "top_k": check_count("top_k", self.top_k, least=0),
            "top_p": check_number("top_p", self.top_p, "a number above 0, at most 1", 0, 1, above=True),
            "min_p": check_number("min_p", self.min_p, "a number from 0 to 1", 0, 1),
            "repetition_penalty": check_number(
                "repetition_penalty", self.repetition_penalty, "a number from 0.001 to 100", 0.001, 100
            ),
            "presence_penalty": check_number("presence_penalty", self.presence_penalty, "a number from -2 to 2", -2, 2),
            "frequency_penalty": check_number(
                "frequency_penalty", self.frequency_penalty, "a number from -2 to 2", -2, 2
            ),
            "logit_bias": _biases(self.logit_bias),
            "rules": _rules(self.rules),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class Sampler:
    """Draws one token after another for one prompt.

    Attributes:
        sampling: How tokens are chosen.
        greedy: Whether the most likely one is always taken.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Iterable[int],
        random: np.random.Generator,
        ends: Iterable[int] = (),
        hold: int = 0,
    ) -> None:
        """Start with a prompt.

        Args:
            sampling: How tokens are chosen.
            prompt: Its ids, which count as already there for the repetition penalty.
            random: Not used if the temperature is 0.
            ends: Tokens that end the text.
            hold: The number of tokens that are none of `ends`, before any may be.
        """
        self.sampling = sampling
        self.greedy = sampling.temperature < _COLD
        self._random = random
        self._points: deque[float] = deque()  # drawn and not used yet
        self._penalised = sampling.repetition_penalty != 1
        self._seen = set(prompt) if self._penalised else set()
        self._ends = np.array(sorted(ends), np.int64)
        self._hold = hold if len(self._ends) else 0
        self._rules = [make() for make in sampling.rules]
        self._written: Counter[int] | None = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._written = Counter()
        biases = _biases(sampling.logit_bias)
        self._biased = np.array([token for token, _ in biases], np.int64)
        self._biases = np.array([bias for _, bias in biases], np.float32)
        self._free = not (self._penalised or self._rules or biases or self._written is not None)

    def __call__(self, logits: Logits, close: float = 0.0, again: Callable[[], Logits] | None = None) -> int:
        """The next token.

        Args:
            logits: float32 [vocab]; used as scratch space, its content is lost.
            close: Where the two most likely tokens are nearer than this and the most likely one is taken, it is chosen
                from the logits of `again`.
            again: Gives the logits as a step of this token alone computes them.

        Raises:
            EngineError: the logits hold NaN or no finite value.
        """
        best, highest = self._best(logits)
        if self.greedy and again is not None and close > 0:
            logits[best] = -np.inf
            if highest - float(logits.max()) < close:
                best, highest = self._best(again())
        token = best if self.greedy else _draw(logits, highest, self.sampling, self.point())
        self.advance()
        if self._hold:
            self._hold -= 1
        if not self._free:
            self._note(token)
        return token

    def _best(self, logits: Logits) -> tuple[int, float]:
        """The most likely token and its logit, after all that changes logits."""
        if not self._free:
            self._change(logits)
        if self._hold:
            logits[self._ends] = -np.inf
        best = int(logits.argmax())
        highest = float(logits[best])
        if not math.isfinite(highest):  # argmax finds NaN and +inf wherever they are
            raise EngineError(f"logits: the highest is {highest}; the graph computes no finite numbers")
        return best, highest

    @property
    def free(self) -> bool:
        """Whether a token depends on nothing but its logits, so that another device may choose it."""
        return self._free and not self._hold

    def point(self, ahead: int = 0) -> float:
        """Where in the distribution the next token is drawn, in [0, 1), or the one that many after it."""
        while not self.greedy and len(self._points) <= ahead:
            self._points.append(self._random.random())
        return 0.0 if self.greedy else self._points[ahead]

    def advance(self) -> None:
        """The next token was chosen."""
        if self._points:
            self._points.popleft()

    def _change(self, logits: Logits) -> None:
        for rule in self._rules:
            rule.before(logits)
        if len(self._biased):
            if (highest := int(self._biased.max())) >= len(logits):
                raise RequestError(f"logit_bias: token id {highest}; ids go from 0 to {len(logits) - 1}")
            logits[self._biased] += self._biases
        if self._written:
            ids = np.fromiter(self._written, np.int64, len(self._written))
            counts = np.fromiter(self._written.values(), np.float32, len(self._written))
            sampling = self.sampling
            logits[ids] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * counts
        if self._penalised:
            _penalise(logits, self._seen, self.sampling.repetition_penalty)

    def _note(self, token: int) -> None:
        for rule in self._rules:
            rule.after(token)
        if self._written is not None:
            self._written[token] += 1
        if self._penalised:
            self._seen.add(token)


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    needed = "a mapping from token ids to numbers from -100 to 100"
    biases = []
    for pair in check_elements("logit_bias", pairs, needed):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError(f"logit_bias: {shown(pair)}; {needed} is needed")
        token = check_count("logit_bias", pair[0], (1 << 32) - 1, 0)
        biases.append((token, check_number("logit_bias", pair[1], "a number from -100 to 100", -100, 100)))
    return tuple(biases)


def _rules(value: object) -> tuple[Callable[[], TokenRule], ...]:
    makers = check_elements("rules", value, "a list of functions that make rules")
    for make in makers:
        if not callable(make):
            raise RequestError(f"rules: {shown(make)}; a function that makes a rule is needed")
    return tuple(makers)  # type: ignore[arg-type]


def _penalise(logits: Logits, seen: set[int], penalty: float) -> None:
    ids = np.fromiter(seen, np.int64, len(seen))
    values = logits[ids]
    logits[ids] = np.where(values < 0, values * penalty, values / penalty)


def _draw(logits: Logits, highest: float, sampling: Sampling, point: float) -> int:
    """The token at `point`, in [0, 1), of the filtered distribution."""
    # Temperature keeps the order, so top-k may come first and leave little to compute with.
    ids = _top(logits, sampling.top_k) if 0 < sampling.top_k < len(logits) else None
    values = logits if ids is None else logits[ids]
    with np.errstate(over="ignore"):  # a logit that means "never" may become -inf
        values -= np.float32(highest)
        values /= np.float32(sampling.temperature)
    weights = np.exp(values, out=values)  # relative to the highest, whose weight is 1
    lowest = sampling.min_p
    if sampling.top_p < 1:
        lowest = max(lowest, _edge(weights, sampling.top_p))
    if lowest > 0:
        kept = np.flatnonzero(weights >= np.float32(lowest))
        weights = weights[kept]
        ids = kept if ids is None else ids[kept]
    place = _position(weights, point)
    return place if ids is None else int(ids[place])


def _top(logits: Logits, count: int) -> Ids:
    """Ids of the `count` highest logits and of all that equal the lowest of them."""
    ids = np.flatnonzero(logits >= _bound(logits, count))
    values = logits[ids]
    return ids[values >= _nth(values, count)]


def _edge(weights: Logits, top_p: float) -> float:
    """The lowest of the highest weights that together make up `top_p` of all."""
    needed = top_p * float(weights.sum())
    count = 128  # most often more than enough, and quick to sort
    while True:
        some = weights[weights >= _bound(weights, min(count, len(weights)))]
        some = np.sort(some)[::-1]
        ends = np.cumsum(some, dtype=np.float64)
        last = int(np.searchsorted(ends, needed))
        if last < len(some):
            return float(some[last])
        if len(some) == len(weights):  # by rounding only
            return float(some[-1])
        count *= 8


def _bound(values: Logits, count: int) -> np.float32:
    """A value that at least `count` of `values` reach, and not many more.

    It is the count-th highest of the lanes' maxima, or of all values where the lanes are too few.
    """
    lanes = len(values) // _LANE
    if count > lanes // 4:
        return _nth(values, count)
    return _nth(values[: lanes * _LANE].reshape(_LANE, lanes).max(axis=0), count)


def _nth(values: Logits, count: int) -> np.float32:
    """The count-th highest value, counted from 1."""
    lowest: np.float32 = np.partition(values, len(values) - count)[len(values) - count]
    return lowest


def _position(weights: Logits, point: float) -> int:
    """Where `point`, in [0, 1), falls when `weights` are laid end to end and scaled to 1."""
    if len(weights) <= _RUN:
        return _falls(np.cumsum(weights, dtype=np.float64), point)[0]
    # First the run, then the place in it: a running sum over all weights would take longer than all else.
    runs = np.add.reduceat(weights, np.arange(0, len(weights), _RUN))
    run, target = _falls(ends := np.cumsum(runs, dtype=np.float64), point)
    inside = (target - (ends[run] - runs[run])) / runs[run]
    return run * _RUN + _position(weights[run * _RUN : (run + 1) * _RUN], inside)


def _falls(ends: npt.NDArray[np.float64], point: float) -> tuple[int, float]:
    """The first place that ends beyond `point` of the whole, and that point."""
    target = max(0.0, point) * float(ends[-1])
    place = int(np.searchsorted(ends, target, side="right"))
    # Rounding may put the point outside [0, 1): then it is the first or last place that has any weight.
    return (place if place < len(ends) else int(np.searchsorted(ends, ends[-1]))), target
