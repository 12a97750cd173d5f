"""A hub on this machine: repositories with commits, branches, terms to accept and connections that break."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the hub has, and what it was asked for.

    Attributes:
        repositories: For each `org/name` and each revision (a commit's 40 digits or a branch) its files.
        refuse: For each `org/name` the status and error code of every answer about it.
        cut_after: For each file, after how many bytes its connection breaks; each number is used once.
        asked: Method, path and range of each request.
        tokens: What requests said of who they are.
        url: Where it listens.
    """

    repositories: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def add(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch; returns its 40 digits."""
        commit = hashlib.sha1(json.dumps(sorted((n, hashlib.sha1(c).hexdigest()) for n, c in files.items())).encode())
        revisions = self.repositories.setdefault(repository, {})
        revisions[commit.hexdigest()] = revisions[branch] = files
        return commit.hexdigest()

    def commit_of(self, repository: str, revision: str) -> str:
        revisions = self.repositories[repository]
        files = revisions[revision]
        return next(name for name, each in revisions.items() if len(name) == 40 and each is files)

    def fetched(self) -> list[str]:
        """Names of the files whose content was sent, in alphabetical order, once each."""
        found = {re.sub(r".*/resolve/[^/]+/", "", path) for method, path, _ in self.asked if method == "GET"}
        return sorted(name for name in found if "/api/" not in name)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub while the body runs."""
    hub = Hub()

    class Handler(_Handler):
        of = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    of: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.of.asked.append((self.command, path, self.headers.get("Range", "")))
        self.of.tokens.add(self.headers.get("Authorization", ""))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None:
            self._error(404, "")
        elif found[1] in self.of.refuse:
            self._error(*self.of.refuse[found[1]])
        elif found[1] not in self.of.repositories:
            self._error(404, "RepoNotFound")
        elif api is not None:
            self._about(api[1], api[2] or "revision", api[3] or "main")
        elif file is not None:
            self._file(file[1], file[2], file[3])

    def _about(self, repository: str, what: str, revision: str) -> None:
        files = self.of.repositories[repository].get(revision)
        if files is None:
            self._error(404, "RevisionNotFound")
            return
        about: object = {
            "id": repository,
            "sha": self.of.commit_of(repository, revision),
            "siblings": [{"rfilename": name} for name in files],
        }
        if what == "tree":
            about = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        body = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, repository: str, revision: str, name: str) -> None:
        files = self.of.repositories[repository].get(revision)
        if files is None or name not in files:
            self._error(404, "RevisionNotFound" if files is None else "EntryNotFound")
            return
        content = files[name]
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.of.commit_of(repository, revision))
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.of.cut_after.get(name, [])
        if cuts:
            self.wfile.write(content[begin : cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[begin:])

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "said by the hub")
        self.send_header("Content-Length", "0")
        self.end_headers()
