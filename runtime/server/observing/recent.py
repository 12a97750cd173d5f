"""The requests of the last minute, and the newest one of each model: numbers only, never a text or an id of a token."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from time import monotonic

import numpy as np
import numpy.typing as npt

from adaptc.runtime.generation.result import Result

SECONDS = 60.0
"""How long a request counts."""

MOST = 4096
"""Requests of one model that are kept; with more in a minute the newest of them count."""

MOST_TOKENS = 1024
"""Tokens whose skipped blocks are kept of a model's newest request: the last ones that it wrote."""


@dataclass(frozen=True, slots=True)
class Times:
    """How one request went; times are seconds.

    Attributes:
        ended: When it ended, by the clock.
        whole: From its coming to its end.
        first: From its coming to its first token; None if it wrote none.
        each: Mean time of the tokens after the first; None if there was none.
        skipped: Share of all feed-forward blocks that did not run, 0 to 1; None without gates.
    """

    ended: float
    whole: float
    first: float | None = None
    each: float | None = None
    skipped: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LastWritten:
    """The newest request of a model that writes text.

    Attributes:
        number: Larger than that of any earlier request of this server.
        times: How it went.
        budget: The budget that it asked for; None for the model's own.
        lowered_to: See `Trace`.
        routes: See `Trace`.
        finish_reason: See `Result`.
        prompt_tokens: See `Trace`.
        cached_tokens: See `Trace`.
        new_tokens: See `Trace`.
        ran: bool [tokens, gates], see `Skips.ran`, for the last `MOST_TOKENS` tokens; None without gates.
    """

    number: int
    times: Times
    budget: float | None
    lowered_to: float | None
    routes: tuple[tuple[int, str], ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    ran: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True, eq=False)
class LastInputs:
    """The newest request of a model that answers inputs.

    Attributes:
        number: See `LastWritten`.
        times: How it went.
        modalities: Those that each row's outputs come from.
        accuracy: Expected share of correct outputs, 0 to 1; None if the bundle was never profiled.
    """

    number: int
    times: Times
    modalities: tuple[tuple[str, ...], ...]
    accuracy: float | None


class Recent:
    """What a server has answered lately. A request costs some microseconds, whether somebody looks or not.

    Attributes:
        last: The newest request of each model.
        clock: Seconds.
        started: When it began to count, which tells one server from the one after it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Start without requests.

        Args:
            clock: Seconds.
        """
        self.last: dict[str, LastWritten | LastInputs] = {}
        self.clock = clock
        self.started = clock()
        self._numbers = count(1)
        self._times: dict[str, deque[Times]] = {}

    def wrote(self, model: str, result: Result, seconds: float, budget: float | None) -> None:
        """Take a text into account.

        Args:
            model: The name of the model that wrote it.
            result: What was written.
            seconds: Time of the request.
            budget: The budget that it asked for.
        """
        trace, skips = result.trace, result.trace.skips
        times = Times(
            self.clock(),
            seconds,
            trace.time_to_first_token_seconds if trace.new_tokens else None,
            trace.time_per_output_token_seconds,
            None if skips is None else skips.share,
        )
        self._add(model, times)
        self.last[model] = LastWritten(
            number=next(self._numbers),
            times=times,
            budget=budget,
            lowered_to=trace.lowered_to,
            routes=trace.routes,
            finish_reason=result.finish_reason,
            prompt_tokens=trace.prompt_tokens,
            cached_tokens=trace.cached_tokens,
            new_tokens=trace.new_tokens,
            ran=None if skips is None else skips.ran[-MOST_TOKENS:].copy(),
        )

    def answered(
        self, model: str, seconds: float, modalities: tuple[tuple[str, ...], ...], accuracy: float | None
    ) -> None:
        """Take inputs into account that were answered; see `LastInputs`."""
        times = Times(self.clock(), seconds)
        self._add(model, times)
        self.last[model] = LastInputs(next(self._numbers), times, modalities, accuracy)

    def minute(self, model: str) -> Sequence[Times]:
        """The requests of a model that ended within the last minute."""
        kept = self._times.get(model, deque())
        since = self.clock() - SECONDS
        while kept and kept[0].ended < since:
            kept.popleft()
        return tuple(kept)

    def _add(self, model: str, times: Times) -> None:
        if model not in self._times:
            self._times[model] = deque(maxlen=MOST)
        self._times[model].append(times)
