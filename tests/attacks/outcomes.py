"""What became of an attempt: it is made in a process of its own, which may crash or hang."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from adaptc.runtime import AdaptcError

GOOD = frozenset({"same answer", "refused in one line", "made again, the same", "killed", "ended before the kill"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes: kind: "value", or what went wrong; value: what the attempt gave, or what it said."""

    kind: str
    value: Any


def attempt(work: Callable[[], Any], seconds: float = 120, kill: Callable[[int], None] = lambda _: None) -> Outcome:
    """Run `work` in a fork of this process; `kill` gets its number and may end it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(json.dumps(asdict(_outcome(work))).encode())
        os._exit(0)
    os.close(write)
    kill(child)
    with os.fdopen(read, "rb") as pipe:
        content, ends = b"", time.monotonic() + seconds
        while select.select([pipe], [], [], max(0.0, ends - time.monotonic()))[0]:
            block = os.read(pipe.fileno(), 1 << 16)
            if not block:
                break
            content += block
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("hang", f"more than {seconds} s")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        return Outcome("killed", None)
    if status or not content:
        return Outcome("crash", f"exit {status}")
    return Outcome(**json.loads(content))


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome("value", work())
    except AdaptcError as error:
        return Outcome("refused in one line" if "\n" not in str(error) else "several lines", str(error))
    except BaseException:
        return Outcome("traceback", traceback.format_exc())


def within(outcomes: Iterable[tuple[str, str]], seconds: float) -> Iterator[tuple[str, str]]:
    """Outcomes until so many seconds are over, where 0 is no limit."""
    ends = time.monotonic() + seconds
    for outcome in outcomes:
        yield outcome
        if seconds and time.monotonic() > ends:
            return


def report(title: str, outcomes: Iterable[tuple[str, str]], seconds: float) -> bool:
    """Print a table of (what was attacked, outcome); whether all are good."""
    counts = Counter(outcomes)
    lines = [f"{title}: {counts.total()} in {seconds:.0f} s", "", "| attacked | outcome | count |", "|---|---|---|"]
    lines += [f"| {what} | {outcome} | {count} |" for (what, outcome), count in sorted(counts.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    return all(outcome in GOOD for _, outcome in counts)
