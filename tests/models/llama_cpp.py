"""llama.cpp in a process of its own: what tests of GGUF files are held against.

It is asked through its own HTTP server, by a process that lives as long as the tests that share it. An assertion of
llama.cpp's ends that process, and is an error here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.repo import ROOT

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed; it has wheels for Linux x86_64"
)

_CONTEXT = 512


class LlamaCpp:
    """The process; started with the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.communicate()

    def tokenize(self, path: Path, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with what the file has put around a text."""
        bodies = [{"content": text, "add_special": True, "parse_special": True} for text in texts]
        return [answer["tokens"] for answer in self.ask(path, "/tokenize", bodies)]

    def text(self, path: Path, ids: Sequence[int]) -> str:
        """The text of ids that a model wrote."""
        [answer] = self.ask(path, "/detokenize", [{"tokens": list(ids)}])
        return str(answer["content"])

    def ends(self, path: Path, tokens: Sequence[int]) -> list[int]:
        """Those of `tokens` that end an answer: each is forced once."""
        bodies = [
            {"prompt": [0], "n_predict": 1, "logit_bias": [[token, 1e9]], "temperature": 0, "cache_prompt": False}
            for token in tokens
        ]
        answers = self.ask(path, "/completion", bodies)
        return [token for token, answer in zip(tokens, answers, strict=True) if answer["stop_type"] == "eos"]

    def log_probabilities(self, path: Path, prompts: Sequence[Sequence[int]], count: int) -> list[dict[int, float]]:
        """The natural logarithm of each token's probability after each prompt, by id; `count` is all there are."""
        # An end as the first token would leave nothing to tell of; probabilities are those from before the bias.
        forced = {"n_predict": 1, "temperature": 0, "logit_bias": [[count - 1, 1e9]], "cache_prompt": False}
        bodies = [{"prompt": list(ids), "n_probs": count, **forced} for ids in prompts]
        answers = self.ask(path, "/completion", bodies)
        first = [answer["completion_probabilities"][0]["top_logprobs"] for answer in answers]
        return [{each["id"]: each["logprob"] for each in tokens} for tokens in first]

    def prompt(self, path: Path, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation as its chat template renders it."""
        [answer] = self.ask(path, "/apply-template", [{"messages": list(messages)}])
        return str(answer["prompt"])

    def ask(self, path: Path, route: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The answers of a file's server to requests, in order.

        Raises:
            RuntimeError: llama.cpp does not take the file, refuses a request, or ended.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.models.llama_cpp"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(path), route, list(bodies)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with exit code {self._process.wait()}")
        answers = json.loads(line)
        if isinstance(answers, str):
            raise RuntimeError(answers)  # noqa: TRY004 - what llama.cpp says, not a type of ours
        return list(answers)


def _server(path: str) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = _CONTEXT
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.port = 0
    parameters.warmup = False
    # As exact as it gets: by default keys and values are kept as float16.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def _post(url: str, body: Mapping[str, Any]) -> Any:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode(errors="replace")) from error


def _serve() -> None:
    """Answer lines of [file, route, bodies], with the server of one file at a time."""
    # llama.cpp writes its own lines wherever it likes.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running: tuple[str, Any] = "", None
    for line in sys.stdin:
        path, route, bodies = json.loads(line)
        try:
            if running[0] != path:
                running = "", None
                running = path, _server(path)
            found: Any = [_post(running[1].listening_address + route, body) for body in bodies]
        except (RuntimeError, OSError) as error:
            running = "", None
            found = str(error) or type(error).__name__
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
