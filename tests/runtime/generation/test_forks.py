"""A session in a fork of its process: refused in one line, closed without waiting; the parent's goes on."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from adaptc.runtime import AdaptcError, Session
from adaptc.runtime.bundle.manifest import ModalSpec
from adaptc.runtime.multimodal.subsets import ModalGraphs
from tests.models.history_lm import HistoryLm
from tests.runtime.generation.text_lm import PROMPT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
REFUSED = "session: loaded before this process was forked; load the bundle in this process"


def in_fork(work: Callable[[], object]) -> str:
    """What a fork says when it does something: the result or the error's message; "hang" after a while."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads: the point
        child = os.fork()
    if child == 0:
        try:
            said = str(work())
        except AdaptcError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    ready = select.select([read], [], [], 30)[0]
    said = os.read(read, 10_000).decode() if ready else "hang"
    os.close(read)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said


async def write(session: Session) -> str:
    return "".join([piece async for piece in session.generate_async(PROMPT, max_new_tokens=3)])


USES: list[Callable[[Session], object]] = [
    lambda session: session.generate(PROMPT, max_new_tokens=3),
    lambda session: next(session.generate(PROMPT, stream=True)),
    lambda session: asyncio.run(write(session)),
    lambda session: session.score(PROMPT),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while a thread generates"])
def test_a_fork_is_refused_in_one_line(
    session: Session, lm: HistoryLm, use: Callable[[Session], object], busy: bool
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        assert goes_on.wait(60)

    if busy:
        lm.before = step
        thread = threading.Thread(target=session.generate, args=(PROMPT,), kwargs={"max_new_tokens": 2})
        thread.start()
        assert begun.wait(30)
    assert in_fork(lambda: use(session)) == REFUSED
    goes_on.set()
    if busy:
        thread.join(30)
    assert session.generate(PROMPT, max_new_tokens=3).ids


def test_closing_in_a_fork_waits_for_nothing_and_frees_nothing(session: Session, lm: HistoryLm) -> None:
    held, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        with session._turns._changed:
            held.set()
            assert goes_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)

    def close() -> object:
        session.close()
        session.close()
        return lm.engine.function is not None, repr(session).endswith("closed>")

    assert in_fork(close) == "(True, True)"
    goes_on.set()
    thread.join(30)
    assert session.generate(PROMPT, max_new_tokens=3).ids


def test_a_stream_of_the_parent_goes_on_after_a_fork(session: Session) -> None:
    stream = session.generate(PROMPT, max_new_tokens=8, stream=True)
    first = next(stream)
    assert in_fork(lambda: list(stream)) == REFUSED
    assert first + "".join(stream) == session.generate(PROMPT, max_new_tokens=8).text


def test_graphs_of_modalities_are_refused_too() -> None:
    def load(name: str) -> object:
        raise AssertionError(name)

    graphs = ModalGraphs(ModalSpec({}, ()), load)  # type: ignore[arg-type]
    assert in_fork(lambda: graphs.engine_run("x", {})) == REFUSED
    assert in_fork(graphs.close) == "None"


EXITS = {
    "a stream half read": "stream = session.generate([1, 2], stream=True); next(stream)",
    "a stream half read by another thread": (
        "stream = session.generate([1, 2], stream=True)\n"
        "thread = threading.Thread(target=next, args=(stream,)); thread.start(); thread.join()"
    ),
    "a coroutine's stream half read": (
        "async def main():\n    stream = session.generate_async([1, 2]); await anext(stream)\nasyncio.run(main())"
    ),
    "a loop that was closed under it": (
        "loop = asyncio.new_event_loop(); stream = session.generate_async([1, 2])\n"
        "loop.run_until_complete(anext(stream)); loop.close()"
    ),
    "closed in the middle": "stream = session.generate([1, 2], stream=True); next(stream); session.close()",
    "closed by another thread": (
        "stream = session.generate([1, 2], stream=True); next(stream)\n"
        "thread = threading.Thread(target=session.close); thread.start(); thread.join(); session.close()"
    ),
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_ends_whatever_is_open(how: str) -> None:
    program = (
        "import asyncio, threading\n"
        "from tests.models.history_lm import HistoryLm, decoder_spec\n"
        "from tests.models.sessions import session_of\n"
        "from tests.models.tiny_tokenizer import byte_level, files\n"
        "from adaptc.runtime.text.tokenizer import Tokenizer\n"
        "lm = HistoryLm(decoder_spec(vocab=320, max_tokens=100_000))\n"
        f"session = session_of(lm.engine, lm.spec, Tokenizer(files(byte_level())))\n{EXITS[how]}\nprint('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("end\n", "")
