"""How a server is set up: where it listens, and the limits of what it lets in."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from adaptc.runtime.errors import RequestError
from adaptc.runtime.text_file import read_text
from adaptc.runtime.validation import check_count, check_seconds, shown

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that only this machine can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
        host: The address it listens on.
        port: The port, 0 for any that is free.
        keys: SHA-256 of each API key that is let in; empty lets everybody in.
        allowed_hosts: Names by which clients may call it, beside those of the address; "*" allows all.
        max_body: The largest body of a request, in bytes.
        max_tokens: The largest number of tokens that a request may write; None for what the bundle holds.
        max_seconds: The longest time of a request, in seconds; what was written by then is the answer.
        max_queue: The largest number of requests of one model that wait.
        max_prompts: The largest number of prompts in one request.
        max_connections: The largest number of connections; further ones get a bare 503.
        read_seconds: The longest time that the head of a request may take to arrive, and then its body.
        write_seconds: The longest time that a client may take none of a stream.
        drain_seconds: The longest time that running requests get when the server is told to end.
        templates: Whether requests may bring chat templates of their own.
        ui: Whether there is a page for browsers.
        log_json: Whether a line of the log is a JSON object.

    Raises:
        RequestError: a number is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: frozenset[bytes] = frozenset()
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 8 << 20
    max_tokens: int | None = None
    max_seconds: float = 600.0
    max_queue: int = 64
    max_prompts: int = 128
    max_connections: int = 1024
    read_seconds: float = 30.0
    write_seconds: float = 30.0
    drain_seconds: float = 30.0
    templates: bool = False
    ui: bool = True
    log_json: bool = False

    def __post_init__(self) -> None:
        check_count("port", self.port, 65535, 0)
        check_count("max_body", self.max_body, 1 << 40, 1024)
        check_count("max_queue", self.max_queue, 1 << 20, 0)
        check_count("max_prompts", self.max_prompts, 1 << 16)
        check_count("max_connections", self.max_connections, 1 << 20)
        if self.max_tokens is not None:
            check_count("max_tokens", self.max_tokens)
        for name in ("max_seconds", "read_seconds", "write_seconds", "drain_seconds"):
            check_seconds(name, getattr(self, name))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    def lets_in(self, key: str | None) -> bool:
        """Whether a key is one of `keys`; the time that takes does not tell how much of it is right."""
        if not self.keys:
            return True
        given = hash_of(key or "")
        found = [hmac.compare_digest(given, each) for each in self.keys]
        return key is not None and any(found)


def hash_of(key: str) -> bytes:
    """What is kept of an API key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(file: Path) -> frozenset[bytes]:
    """The keys in a file, one a line; empty lines and those that begin with # count as none.

    Raises:
        RequestError: the file cannot be read, or holds no key or one that is too short to be secret.
    """
    lines = read_text(file, "a text file with a key on each line").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise RequestError(f"{file}: holds no key; one on each line is needed")
    for place, key in enumerate(keys):
        if len(key) < 16:
            raise RequestError(f"{file}: key {shown(place + 1)} has {len(key)} characters; 16 or more are needed")
    return frozenset(hash_of(key) for key in keys)
