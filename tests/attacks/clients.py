"""Random clients of a server: right ones, and ones that leave, do not read, or send nonsense.

    python -m tests.attacks.clients BUNDLE --count 1000

It starts `adaptc serve` with the bundle. Every greedy answer must be what the same prompt gives alone, nonsense must be
refused in OpenAI's shape with a status below 500, and at the end nothing may be stuck: no request runs, the log has no
bug, memory is what it was after two thirds, and the server ends by itself when it is told to. It prints the number
of clients by outcome, and what was wrong; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from adaptc import runtime

KINDS = ("whole", "stream", "chat", "leaves", "leaves a stream", "reads slowly", "nonsense", "not HTTP", "cut body")
"""What a client does; each is as likely as the others."""

WORDS = ("the cat sat", "on the mat", "naïve café", "a", "1, 2, 3", "日本語", "family", "Once upon a time, ")
TOKENS = (1, 4, 16, 24)
NONSENSE: tuple[bytes, ...] = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000, b'{"prompt": NaN}', b'{"prompt": 1e999}'),
    *(b'{"prompt": "x", "temperature": -1}', b'{"prompt": "x", "max_tokens": 0}', b'{"prompt": []}'),
    *(b'{"prompt": "x", "stop": ""}', b'{"prompt": "\\ud800"}', b'{"prompt": [99999999]}', b'{"prompt": "x", "n": 3}'),
    *(b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "' + b"word " * 20000 + b'"}'),
    *(b'{"model": "other", "prompt": "x"}', b'{"prompt": "x", "adaptc": {"budget": 7}}', b'{"prompt": {"a": 1}}'),
    *(b'{"prompt": "x", "unknown": 1}', b'{"prompt": "x", "logit_bias": {"a": 1}}', b'{"prompt": [[1], ["x"]]}'),
)
RAW: tuple[bytes, ...] = (
    *(b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\n\r\n",
)


@dataclass
class Server:
    """The process.

    Attributes:
        process: It.
        port: Where it listens.
        log: The lines that it wrote.
    """

    process: subprocess.Popen[str]
    port: int
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10


def started(bundle: Path, *arguments: str) -> Server:
    """A server with a bundle."""
    command = [sys.executable, "-m", "adaptc", "serve", f"lm={bundle}", "--port", "0", "--log-json", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        told = json.loads(line)
        if told["event"] == "listening":
            server = Server(process, int(told["url"].rpartition(":")[2]))
            threading.Thread(target=_read_log, args=(server,), daemon=True).start()
            return server
    raise RuntimeError("the server ended before it listened")


def _read_log(server: Server) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        try:
            server.log.append(json.loads(line))
        except ValueError:
            server.log.append({"event": "bug", "line": line})


@dataclass
class Report:
    """What came of it.

    Attributes:
        outcomes: Clients by what they did and what they got.
        faults: What was wrong, a line each.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The numbers, then what was wrong."""
        lines = [f"{count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        return "\n".join([*lines, *(f"WRONG: {fault}" for fault in self.faults[:20])])


class Attack:
    """Random clients."""

    def __init__(self, server: Server, alone: runtime.Session, seed: int) -> None:
        """Ask nothing yet.

        Args:
            server: Who is asked.
            alone: Says what is right.
            seed: Of the clients.
        """
        self.report = Report()
        self._server, self._seed = server, seed
        self._right: dict[tuple[str, int, bool], str] = {}
        for prompt in WORDS:
            for tokens in TOKENS:
                self._right[prompt, tokens, False] = alone.generate(prompt, max_tokens=tokens).text
                asked = [{"role": "user", "content": prompt}]
                self._right[prompt, tokens, True] = alone.chat(asked, max_tokens=tokens).text

    async def run(self, first: int, count: int, at_once: int) -> None:
        """Let clients come, so many at once."""
        numbers = iter(range(first, first + count))

        async def worker() -> None:
            for number in numbers:
                await self._client(Random(f"{self._seed} {number}"), number)

        await asyncio.gather(*(worker() for _ in range(at_once)))

    async def _client(self, random: Random, number: int) -> None:
        kind = random.choice(KINDS)
        try:
            got = await asyncio.wait_for(self._act(kind, random), 120)
        except asyncio.TimeoutError:
            got = "LOST"
        except (OSError, asyncio.IncompleteReadError) as error:
            got = "closed" if kind in ("not HTTP", "cut body") else f"BROKEN {type(error).__name__}"
        self.report.outcomes[f"{kind}: {got.split(' ')[0]}"] += 1
        if got[:2].isupper():
            self.report.faults.append(f"client {number} ({kind}): {got[:300]}")

    async def _act(self, kind: str, random: Random) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port, limit=1 << 24)
        try:
            if kind == "not HTTP":
                writer.write(random.choice(RAW))
                writer.write_eof()
                return _status(await reader.read())
            if kind in ("nonsense", "cut body"):
                return await self._nonsense(kind, random, reader, writer)
            return await self._asked(kind, random, reader, writer)
        finally:
            writer.transport.abort()

    async def _nonsense(
        self, kind: str, random: Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        content = random.choice(NONSENSE)
        path = random.choice(("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/infer", "/nowhere"))
        length = len(content) + (100 if kind == "cut body" else 0)
        writer.write(_head(path, length) + content)
        if kind == "cut body":
            await asyncio.sleep(random.random() / 20)
            return "left"
        status, body = await _answer(reader)
        if status >= 500 or (status == 200 and path != "/tokenize"):
            return f"WRONG status {status} for {content[:80]!r} at {path}: {body[:200]!r}"
        if status != 200 and json.loads(body).keys() != {"error"}:
            return f"WRONG shape {body[:200]!r}"
        return str(status)

    async def _asked(
        self, kind: str, random: Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        prompt, tokens, chat = random.choice(WORDS), random.choice(TOKENS), kind == "chat" or random.random() < 0.3
        streams = kind in ("stream", "leaves a stream", "reads slowly") or (kind == "chat" and random.random() < 0.5)
        body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "stream": streams}
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        content = json.dumps(body).encode()
        writer.write(_head("/v1/chat/completions" if chat else "/v1/completions", len(content)) + content)
        if kind == "leaves":
            await asyncio.sleep(random.random() / 5)
            return "left"
        if kind == "leaves a stream":
            await reader.read(random.choice((1, 200, 600)))
            return "left"
        if kind == "reads slowly":
            text = b""
            while part := await reader.read(100):
                text += part
                await asyncio.sleep(random.random() / 50)
                if text.endswith(b"0\r\n\r\n"):
                    break
            status, got = _parsed(text)
        else:
            status, got = await _answer(reader)
        if status == 429:
            return "429"
        if status != 200:
            return f"WRONG status {status}: {got[:200]!r}"
        written = _text(got, streams, chat)
        right = self._right[prompt, tokens, chat]
        return "right" if written == right else f"WRONG text {written!r}, {right!r} is right, for {body}"


def _head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    if found := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
        return _parsed(head + await reader.readexactly(int(found[1])))
    text = head
    while not text.endswith(b"0\r\n\r\n"):
        part = await reader.read(1 << 16)
        if not part:
            raise ConnectionError("ended in the middle")
        text += part
    return _parsed(text)


def _parsed(text: bytes) -> tuple[int, bytes]:
    """The status and the body of an answer, chunks joined."""
    head, _, body = text.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            joined, body = joined + body[:length], body[length + 2 :]
        body = joined
    return int(head.split(b" ")[1]), body


def _status(text: bytes) -> str:
    return text.split(b" ")[1].decode() if text.startswith(b"HTTP/1.1 ") else "closed"


def _text(body: bytes, streams: bool, chat: bool) -> str:
    if not streams:
        choice = json.loads(body)["choices"][0]
        return str(choice["message"]["content"] if chat else choice["text"])
    *events, done, _ = body.decode().split("\n\n")
    assert done == "data: [DONE]", done
    choices = [json.loads(each.removeprefix("data: "))["choices"][0] for each in events]
    return "".join(each["delta"].get("content", "") if chat else each["text"] for each in choices)


def attack(bundle: Path, count: int, seed: int, at_once: int, *, drift: float | None = 0.05) -> Report:
    """Start a server, let clients come, and end it.

    Args:
        bundle: Of a model that writes text.
        count: The number of clients.
        seed: Of the clients.
        at_once: The number of clients that are there at the same time.
        drift: How much more memory may be used at the end than after two thirds; None for any.
    """
    server = started(bundle, "--threads", "1", "--max-body", "500000")
    try:
        with runtime.load(bundle, threads=1) as alone:
            attacked = Attack(server, alone, seed)
            memory = []
            for third in range(3):
                first, last = count * third // 3, count * (third + 1) // 3
                asyncio.run(attacked.run(first, last - first, at_once))
                memory.append(server.memory)
        report = attacked.report
        report.outcomes[f"memory after each third: {', '.join(f'{each >> 20} MiB' for each in memory)}"] += 1
        if drift is not None and memory[2] > memory[1] * (1 + drift):
            report.faults.append(f"memory grew in the last third from {memory[1]} to {memory[2]} bytes")
        left = asyncio.run(_running(server.port))
        if left:
            report.faults.append(f"{left} requests still run")
        server.process.send_signal(signal.SIGTERM)
        if server.process.wait(40) != 0:
            report.faults.append(f"the server ended with {server.process.returncode}")
        report.faults += [f"the log has {line}" for line in server.log if line["event"] == "bug"]
    finally:
        server.process.kill()
    return report


async def _running(port: int) -> int:
    """Requests that run when no client is left."""
    for _ in range(100):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
        _, body = await _answer(reader)
        writer.close()
        found = re.findall(r"^adaptc:num_requests_(?:running|waiting)\{.*\} (\d+)$", body.decode(), re.MULTILINE)
        assert len(found) == 2
        if not (left := sum(map(int, found))):
            return 0
        await asyncio.sleep(0.1)
    return left


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.clients", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    report = attack(options.bundle, options.count, options.seed, options.at_once)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
