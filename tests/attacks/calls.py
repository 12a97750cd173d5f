"""Random calls of a session from threads and coroutines, with right and absurd arguments.

    python -m tests.attacks.calls BUNDLE --count 2000

Each call must give what the same call gives alone, or be refused in one line by an error of the tree. It prints the
number of calls by outcome, and what was wrong; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import queue
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from adaptc import runtime
from adaptc.runtime import AdaptcError, Result, Sampling, Session, Stream

MODES = ("whole", "stream", "closed", "dropped", "awaited", "async stream", "cancelled")
"""How a request is made; of the last but `awaited` and `async stream`, what is written depends on time."""

FAULTS = ("TRACEBACK", "SEVERAL LINES", "WRONG", "LOST")
"""Outcomes that must not be; the others are `result`, `refused` and `cut`."""


class _NoRepr:
    def __repr__(self) -> str:
        raise ValueError("no repr")


def _recursive() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


JUNK: tuple[Callable[[], Any], ...] = (
    *((lambda value=value: value) for value in (None, True, False, 0, -1, 1, 3, 1.5, -0.0, 2**63, 10**40, 10**5000)),
    *((lambda value=value: value) for value in (math.nan, math.inf, -math.inf, 1e-300, 1e308, "", "x", "3", "\ud800")),
    *((lambda value=value: value) for value in ("\0", "a\nb", b"", b"x", (), (1,), 1j, Fraction(1, 3), Decimal(1))),
    *((lambda value=value: value) for value in (object, len, Ellipsis, range(3), frozenset({1}), slice(1))),
    *((lambda make=make: make()) for make in (list, dict, set, object, bytearray, _NoRepr, _recursive)),
    lambda: [1, "a"],
    lambda: [[]],
    lambda: [None],
    lambda: {"a": 1},
    lambda: {1: 2},
    lambda: iter([1, 2]),
    lambda: (each for each in ["a", "b"]),
    lambda: np.float32(0.5),
    lambda: np.int64(3),
    lambda: np.bool_(True),
    lambda: np.str_("x"),
    lambda: np.array([1, 2]),
    lambda: np.array([1.5]),
    lambda: np.array(["x"]),
    lambda: np.array(3),
    lambda: np.zeros((2, 2), np.int64),
    lambda: np.array([None]),
    lambda: Sampling(temperature=1),
    lambda: Sampling,
)
"""Makes values of every kind that a caller may give by mistake."""

PROMPTS: tuple[Callable[[], Any], ...] = (
    *(
        (lambda text=text: text)
        for text in ("hello", " ", "\n\n", "\0", "日本語テスト", "😀👩‍👩‍👧‍👦", "a\0b", "é" * 30)
    ),
    *((lambda text=text: text) for text in ("<|im_start|>user", "<unk></s><s>", "\u202ertl", "\x7f\x1b[31m", "A" * 40)),
    lambda: [1, 2, 3],
    lambda: (4, 5),
    lambda: [5] * 40,
    lambda: np.array([1, 2], np.int32),
    lambda: range(3),
    lambda: ["hello", "world", "x"],
    lambda: [[1, 2], [3]],
    lambda: ["a"] * 3,
    list,
)
"""Makes prompts that most bundles take."""

ODD: tuple[Callable[[], Any], ...] = (
    lambda: "",
    lambda: "x" * 20_000,
    lambda: [""] * 3,
    lambda: [[]],
    lambda: [2**70],
    lambda: [-1],
    lambda: [10**9],
    lambda: ["a", [1]],
    lambda: [[1], [2**70]],
)
"""Makes prompts that most bundles refuse, each for a reason of its own."""

RIGHT: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (1, 2, 5, 12, np.int64(7)),
    "max_tokens": (1, 9),
    "min_new_tokens": (0, 1, 3),
    "sampling": (Sampling(), Sampling(temperature=0.8, top_p=0.9)),
    "temperature": (0, 0.1, 1, 1e-6, 100, np.float32(0.7)),
    "top_k": (0, 1, 10, 10**6, 10**30),
    "top_p": (1, 0.5, 1e-9, 0.999999),
    "min_p": (0, 0.1, 1),
    "repetition_penalty": (1, 1.1, 0.5, 100, 1e-3),
    "stop": ("a", ["a", "b"], ("\n",), "😀", "x" * 9999, ()),
    "stop_token_ids": ((), [1, 2], 3, np.array([4])),
    "seed": (0, 7, 2**40, 10**50),
    "deadline": (1e-9, 0.01, 60, np.float32(30)),
    "budget": (None, None, None, 0.5),
    "route": (None, None, None, "large"),
    "images": (None, []),
    "modalities": (None, None, None, ["text"]),
}
"""Values by option; most are right for most bundles."""

MESSAGES: tuple[Callable[[], Any], ...] = (
    lambda: [{"role": "user", "content": "hi"}],
    lambda: ({"role": "system", "content": "be"}, {"role": "user", "content": "brief"}),
    lambda: [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
)
"""Makes conversations that most templates take."""

ODD_MESSAGES: tuple[Callable[[], Any], ...] = (
    lambda: [{"role": "user", "content": "\ud800"}],
    lambda: [{"role": "user"}],
    lambda: [{"role": 5, "content": 6}],
    lambda: [{"role": "user", "content": object()}],
    lambda: {"role": "user", "content": "hi"},
    lambda: ["hi"],
    lambda: [{"role": "user", "content": _recursive()}],
)
"""Makes conversations that most templates refuse."""


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: The session's method; `tokenizer.NAME` is one of its tokenizer.
        mode: See `MODES`.
        arguments: Those without a name.
        options: Those with one.
    """

    name: str
    mode: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """Whether the same call gives the same text again."""
        sampling = self.options.get("sampling")
        greedy = not self.options.get("temperature") and (sampling is None or sampling == Sampling())
        timeless = "deadline" not in self.options and self.mode in ("whole", "stream", "awaited", "async stream")
        return timeless and (greedy or self.options.get("seed") is not None)

    def __str__(self) -> str:
        return f"{self.name} ({self.mode}) {_short(self.arguments)} {_short(self.options)}"


def _short(value: object) -> str:
    try:
        return ascii(value)[:200]
    except ValueError:
        return type(value).__name__


def draw(random: Random, most_tokens: int = 12) -> Call:
    """A call: about half are right."""
    wrong = random.choice((0, 0, 0, 0, 0, 1, 1, 2))
    name = random.choice(
        ("generate",) * 24 + ("chat",) * 8 + ("tokenizer",) * 3 + ("score", "score", "choose", "reroute")
    )
    if name == "reroute":
        return Call(name, "whole", (_one(random, wrong, (lambda: "large", lambda: "small")),))
    if name == "tokenizer":
        kind = random.choice(("encode", "count", "decode", "render", "token"))
        right = {"decode": (lambda: [1, 2, 3],), "render": MESSAGES, "token": (lambda: 3,)}.get(kind, PROMPTS[:13])
        return Call(f"tokenizer.{kind}", "whole", (_one(random, wrong, right),))
    right, odd = (MESSAGES, ODD_MESSAGES) if name == "chat" else (PROMPTS, ODD)
    first = _one(random, wrong > 1, odd if random.random() < 0.15 else right)
    if name in ("score", "choose"):
        known = ("step", "budget", "route") if name == "score" else ("budget",)
        options = {each: random.choice(JUNK)() for each in random.sample(known, min(wrong, len(known)))}
        return Call(name, "whole", (first,), options)
    options = {"max_new_tokens": random.choice((1, 2, 5, most_tokens))}
    for each in random.sample(sorted(RIGHT), random.randrange(4)):
        options[each] = random.choice(RIGHT[each])
    if "max_tokens" in options and random.random() < 0.8:
        del options["max_new_tokens"]
    for each in random.sample([*RIGHT, "maxtokens"], wrong):
        options[each] = random.choice(JUNK)()
    if name == "chat" and random.random() < 0.2:
        options["template"] = random.choice(JUNK)()
    mode = random.choice(MODES)
    if mode == "whole" and random.random() < 0.1:
        options["stream"] = random.choice(JUNK)()
    return Call(name, mode, (first,), options)


def _one(random: Random, wrong: int, right: tuple[Callable[[], Any], ...]) -> Any:
    return random.choice(JUNK if wrong else right)()


def outcome(session: Session, call: Call, random: Random) -> tuple[str, Any]:
    """What a call ends in: its outcome, and its texts and ids, or the message."""
    try:
        return _perform(session, call, random)
    except AdaptcError as error:
        lines = str(error).splitlines()
        return ("refused" if len(lines) == 1 else "SEVERAL LINES"), str(error)
    except Exception:
        return "TRACEBACK", traceback.format_exc()


def _perform(session: Session, call: Call, random: Random) -> tuple[str, Any]:
    if call.name.startswith("tokenizer."):
        assert session.tokenizer is not None
        return "result", getattr(session.tokenizer, call.name.removeprefix("tokenizer."))(*call.arguments)
    if call.mode in ("awaited", "async stream", "cancelled") and call.name in ("generate", "chat"):
        ended = asyncio.run(_coroutine(session, call, random))
    elif call.mode in ("stream", "closed", "dropped"):
        ended = _streamed(session, call, random)
    else:
        ended = getattr(session, call.name)(*call.arguments, **call.options)
    if call.name not in ("generate", "chat"):
        return "result", np.asarray(ended.values).tolist() if call.name == "score" else ended
    if ended is None or call.mode in ("closed", "cancelled") or isinstance(ended, Stream):
        return "cut", None
    return "result", [(each.text, each.ids) for each in (ended if isinstance(ended, list) else [ended])]


def _streamed(session: Session, call: Call, random: Random) -> Result | None:
    stream = getattr(session, call.name)(*call.arguments, stream=True, **call.options)
    if call.mode == "stream":
        text = "".join(stream)
        assert text == stream.result.text, "the pieces are not the text"
        result: Result = stream.result
        return result
    for _ in range(random.randrange(4)):
        next(stream, None)
    if call.mode == "dropped":
        return None
    stream.close()
    assert stream.result.finish_reason in ("cancelled", "eos", "stop", "length", "deadline")
    closed: Result = stream.result
    return closed


async def _coroutine(session: Session, call: Call, random: Random) -> Any:
    answer = getattr(session, f"{call.name}_async")(*call.arguments, **call.options)
    if call.mode == "awaited" or not hasattr(answer, "__aiter__"):
        return await answer
    if call.mode == "async stream":
        text = "".join([piece async for piece in answer])
        assert text == answer.result.text, "the pieces are not the text"
        return answer.result
    task = asyncio.ensure_future(answer)
    await asyncio.sleep(random.uniform(0, 0.01))
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return answer.result


@dataclass(frozen=True)
class Report:
    """What calls ended in.

    Attributes:
        counts: Calls by (name and mode, outcome).
        faults: What was wrong, call by call.
    """

    counts: Counter[tuple[str, str]]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        total = Counter[str]()
        for (_, ended), count in self.counts.items():
            total[ended] += count
        lines = [f"{name:28} {ended:10} {count:6}" for (name, ended), count in sorted(self.counts.items())]
        sums = ", ".join(f"{count} {ended}" for ended, count in sorted(total.items()))
        none = ", ".join(f"{total[name]} {name.lower()}" for name in FAULTS)
        return "\n".join([*lines, *self.faults, f"{total.total()} calls: {sums}; {none}"])


def attack(
    session: Session, alone: Session, count: int, seed: int = 0, threads: int = 4, patience: float = 3600
) -> Report:
    """Make calls from several threads at once, and compare what can be compared with calls of another session.

    Args:
        session: Is called by all threads.
        alone: The same bundle, loaded once more.
        count: The number of calls.
        seed: Draws the calls.
        threads: The number of threads.
        patience: Seconds after which what has not ended counts as lost.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(count):
        waiting.put(index)
    ended: dict[int, tuple[str, Any]] = {}

    def work() -> None:
        for index in _each(waiting):
            ended[index] = outcome(session, draw(Random(f"{seed} {index}")), Random(index))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ends = perf_counter() + patience
    for worker in workers:
        worker.join(max(0.0, ends - perf_counter()))
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    for index in range(count):
        call = draw(Random(f"{seed} {index}"))
        how, what = ended.get(index, ("LOST", None))
        if how == "result" and call.repeatable:
            again = outcome(alone, draw(Random(f"{seed} {index}")), Random(index))
            how, what = (how, what) if again == (how, what) else ("WRONG", f"{what!r} instead of {again!r}")
        counts[f"{call.name} {call.mode}", how] += 1
        if how in FAULTS:
            faults.append(f"{how}: call {index} of seed {seed}: {call}: {what}")
    return Report(counts, tuple(faults))


def _each(waiting: queue.SimpleQueue[int]) -> Iterator[int]:
    while True:
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.calls", description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--patience", type=float, default=3600, help="seconds after which calls count as lost")
    options = parser.parse_args()
    with runtime.load(options.bundle, threads=1) as session, runtime.load(options.bundle, threads=1) as alone:
        report = attack(session, alone, options.count, options.seed, options.threads, options.patience)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
