"""What llama.cpp makes of a GGUF file: token ids, and the likeliest tokens after prompts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.errors import LoadError
from adaptc.verification import llama_cpp_process
from adaptc.verification.outside import TorchModel
from adaptc.verification.part import Part, judged

ABSENT = "llama.cpp is not installed; pip install xllamacpp, or llama-cpp-python"

MEAN_KL = 0.02
"""Nats that a source model may be from llama.cpp, whose kernels round activations where weights are quantized."""

_TOP = 64
"""Likeliest tokens that are compared at each position."""

_PROMPTS = 4
"""Prompts that llama.cpp continues."""


def installed() -> str | None:
    """The module through which llama.cpp can be asked here; None if there is none."""
    return next((name for name in llama_cpp_process.ASKED if importlib.util.find_spec(name) is not None), None)


@dataclass(frozen=True, slots=True)
class LlamaCppText:
    """What llama.cpp makes of texts.

    Attributes:
        name: It, with its version.
        special: The ids of each text with what the model expects around one.
        plain: The same without.
        end: The token that ends an answer; None if the file names none.
    """

    name: str
    special: list[list[int]]
    plain: list[list[int]]
    end: int | None


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's reading of a GGUF file; each question starts a process.

    Attributes:
        file: The GGUF file.
        threads: Threads of llama.cpp, which wait for each other by spinning; None for one.
    """

    file: Path
    threads: int | None = None

    def text(self, texts: Sequence[str]) -> LlamaCppText:
        """Its ids of texts, and its end of answers.

        Raises:
            LoadError: it does not take the file.
        """
        answer = self._ask({"texts": list(texts), "prompts": [], "new_tokens": 1})
        name = f"llama.cpp ({answer['version']})"
        return LlamaCppText(name, answer["special"], answer["plain"], answer["end"])

    def model_part(self, name: str, model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Part:
        """Compare a source model with llama.cpp, on what llama.cpp writes after prompts.

        Args:
            name: What the part is called.
            model: The source model as torch runs it.
            prompts: Token ids.
            new_tokens: Tokens that are written after each.

        Raises:
            LoadError: llama.cpp does not take the file.
        """
        prompts = prompts[:_PROMPTS]
        answer = self._ask({"texts": [], "prompts": [list(each) for each in prompts], "new_tokens": new_tokens})
        reference = TorchModel(model)
        divergences: list[float] = []
        for prompt, written, tops in zip(prompts, answer["written"], answer["top"], strict=True):
            ids = np.array([*prompt, *written[:-1]], np.int64)
            logits = reference.logits(ids, len(written)).astype(np.float64)
            logits -= logits.max(1, keepdims=True)
            ours = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            for position, top in enumerate(tops):
                chosen, theirs = (np.array(each) for each in zip(*top, strict=True))
                divergences.append(float((np.exp(theirs) * (theirs - ours[position, chosen.astype(int)])).sum()))
        mean = float(np.mean(divergences))
        faults = [] if mean <= MEAN_KL else [f"mean KL is {mean:.3g} nats, at most {MEAN_KL:g} may be"]
        figures = {"mean_kl": mean, "worst_kl": float(np.max(divergences)), "positions": len(divergences)}
        return judged(name, f"llama.cpp ({answer['version']})", faults, figures)

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        tokens = max((len(prompt) for prompt in job["prompts"]), default=0) + job["new_tokens"] + 64
        whole = job | {"module": installed(), "tokens": max(tokens, 256), "threads": self.threads or 1, "top": _TOP}
        command = [sys.executable, "-m", llama_cpp_process.__name__, str(self.file)]
        done = subprocess.run(command, input=json.dumps(whole), capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith(llama_cpp_process.MARK)]
        if done.returncode or not lines:
            said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
            raise LoadError(f"llama.cpp does not take this file: {said}")
        answer: dict[str, Any] = json.loads(lines[-1].removeprefix(llama_cpp_process.MARK))
        return answer
