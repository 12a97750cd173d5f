"""A process that asks llama.cpp about one GGUF file: `python -m adaptc.verification.llama_cpp_process FILE < job.json`.

llama.cpp prints what it likes, and ends its process on files that it does not take. So it has one of its own, which
imports nothing of adaptc; its answer is one line of JSON after `MARK` on stdout.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any, Protocol

MARK = "adaptc-llama.cpp: "

Top = list[tuple[int, float]]
"""The likeliest tokens at a position: id and log probability."""


class Asked(Protocol):
    """llama.cpp with a file, through one of the packages that have it.

    Attributes:
        version: The package, with its version.
    """

    version: str

    def ids(self, text: str, special: bool) -> list[int]:
        """Ids of a text; names of special tokens become these. `special` adds what the model expects around a text."""

    def end(self) -> int | None:
        """The token that ends an answer; None if the file names none."""

    def write(self, prompt: list[int], new_tokens: int, top: int) -> tuple[list[int], list[Top]]:
        """The likeliest continuation of a prompt, and the likeliest tokens at each of its positions."""


class Xllamacpp:
    """Through the package xllamacpp: a server on this machine."""

    def __init__(self, file: str, tokens: int, threads: int) -> None:
        """Load a file, for texts of so many tokens; as much of it in float32 as llama.cpp can."""
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = file
        parameters.n_ctx = tokens
        parameters.port = 0
        parameters.warmup = False
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cpuparams.n_threads = threads
        self._server = xllamacpp.Server(parameters)
        self.version = f"xllamacpp {xllamacpp.__version__}"

    def ids(self, text: str, special: bool) -> list[int]:
        """See `Asked`."""
        found = self._ask("/tokenize", {"content": text, "add_special": special, "parse_special": True})
        return [int(each) for each in found["tokens"]]

    def end(self) -> int | None:
        """See `Asked`."""
        name = self._ask("/props").get("eos_token")
        found = self.ids(name, special=False) if name else []
        return found[0] if len(found) == 1 else None

    def write(self, prompt: list[int], new_tokens: int, top: int) -> tuple[list[int], list[Top]]:
        """See `Asked`."""
        options = {"n_predict": new_tokens, "n_probs": top, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        steps = self._ask("/completion", {"prompt": prompt, **options})["completion_probabilities"]
        tops = [[(each["id"], each["logprob"]) for each in step["top_logprobs"]] for step in steps]
        return [step["id"] for step in steps], tops

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._server.listening_address + path, content, headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


class LlamaCppPython:
    """Through the package llama-cpp-python."""

    def __init__(self, file: str, tokens: int, threads: int) -> None:
        """Load a file, for texts of so many tokens; as much of it in float32 as llama.cpp can."""
        import llama_cpp

        f32 = 0  # of ggml's types
        self._model = llama_cpp.Llama(
            file,
            n_ctx=tokens,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            type_k=f32,
            type_v=f32,
            flash_attn=False,
            verbose=False,
        )
        self.version = f"llama-cpp-python {llama_cpp.__version__}"

    def ids(self, text: str, special: bool) -> list[int]:
        """See `Asked`."""
        return [int(each) for each in self._model.tokenize(text.encode(), add_bos=special, special=True)]

    def end(self) -> int | None:
        """See `Asked`."""
        token = int(self._model.token_eos())
        return token if token >= 0 else None

    def write(self, prompt: list[int], new_tokens: int, top: int) -> tuple[list[int], list[Top]]:
        """See `Asked`."""
        import numpy as np

        self._model.reset()
        self._model.eval(prompt)
        written: list[int] = []
        tops: list[Top] = []
        for _ in range(new_tokens):
            logits = np.array(self._model.scores[self._model.n_tokens - 1], np.float64)
            logits -= logits.max()
            logits -= np.log(np.exp(logits).sum())
            best = np.argsort(-logits)[:top]
            written.append(int(best[0]))
            tops.append([(int(token), float(logits[token])) for token in best])
            self._model.eval(written[-1:])
        return written, tops


ASKED: dict[str, type[Xllamacpp | LlamaCppPython]] = {"xllamacpp": Xllamacpp, "llama_cpp": LlamaCppPython}
"""What asks llama.cpp, by the module that has it; the first one that is installed is used."""


def answer(asked: Asked, job: dict[str, Any]) -> dict[str, Any]:
    """Answer a job.

    Args:
        asked: llama.cpp with a file.
        job: `texts` are turned into ids; `prompts`, lists of ids, are continued by `new_tokens` each.

    Returns:
        `version`; `end`, the token that ends an answer; `special` and `plain`, the ids of each text with and without
        what is added around a text; and for each prompt in `written` the token ids and in `top` the likeliest tokens
        (id, log probability) at each of them.
    """
    written = [asked.write(prompt, job["new_tokens"], job["top"]) for prompt in job["prompts"]]
    return {
        "version": asked.version,
        "end": asked.end(),
        "special": [asked.ids(text, special=True) for text in job["texts"]],
        "plain": [asked.ids(text, special=False) for text in job["texts"]],
        "written": [ids for ids, _ in written],
        "top": [tops for _, tops in written],
    }


if __name__ == "__main__":
    given = json.load(sys.stdin)
    found = answer(ASKED[given["module"]](sys.argv[1], given["tokens"], given["threads"]), given)
    sys.stdout.write(MARK + json.dumps(found) + "\n")
