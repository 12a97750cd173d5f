"""What a GGUF file's weights are worth in a bundle: perplexity beside llama.cpp's own on the file, and steps in turns.

`python -m tests.bench.measure_source_weights FILE.gguf TEXT BUNDLE…` reads the same windows of tokens with llama.cpp
(xllamacpp, token by token, eight windows at once) and with each bundle, and then times decode steps of the bundles in
turns, by processor time, as others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.model.decoder import Ids
from adaptc.verification.bundle_model import BundleModel

SLOTS = 8
"""Windows that llama.cpp reads at once."""


class LlamaCpp:
    """llama.cpp with a file, on this machine."""

    def __init__(self, file: Path, window: int, threads: int) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel, parameters.port, parameters.warmup = SLOTS * window, SLOTS, 0, False
        parameters.cpuparams.n_threads = threads
        self.server = xllamacpp.Server(parameters)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> Ids:
        return np.array(self.ask("/tokenize", {"content": text, "add_special": False})["tokens"], np.int64)

    def losses(self, windows: Sequence[Ids]) -> list[float]:
        """Of each window, minus the log probability of each token after the first."""
        with ThreadPoolExecutor(SLOTS) as pool:
            found = pool.map(self._losses, windows, (place % SLOTS for place in range(len(windows))))
            return [loss for window in found for loss in window]

    def _losses(self, ids: Ids, slot: int) -> list[float]:
        """A bias has each token chosen, and is not counted."""
        found = []
        for place in range(1, len(ids)):
            options = {"n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True, "id_slot": slot}
            forced = [[int(ids[place]), 1e9]]
            answer = self.ask("/completion", {"prompt": ids[:place].tolist(), "logit_bias": forced, **options})
            [step] = answer["completion_probabilities"]
            assert step["id"] == ids[place], "the bias did not force the token"
            found.append(-float(step["logprob"]))
        return found


def losses(model: BundleModel, ids: Ids) -> list[float]:
    """The same of a bundle."""
    logits = model.logits(ids)[:-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, ids[1:, None], -1)[:, 0]
    return list(np.log(np.exp(logits).sum(-1)) - chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="of 16 steps of each bundle in turn")
    given = parser.parse_args(arguments)
    reference = LlamaCpp(given.file, given.window, given.threads)
    ids = reference.tokens(given.text.read_text(encoding="utf-8"))[: given.tokens]
    windows = [ids[first : first + given.window] for first in range(0, len(ids), given.window)]
    own = reference.losses(windows)
    print(f"llama.cpp: perplexity {math.exp(np.mean(own)):.4f} over {len(own)} tokens", flush=True)
    models = {path: BundleModel(open_bundle(path), given.threads) for path in given.bundles}
    for path, model in models.items():
        found = [loss for window in windows for loss in losses(model, window)]
        share = math.exp(np.mean(found) - np.mean(own))
        print(f"{path.name}: perplexity {math.exp(np.mean(found)):.4f}, x{share:.4f} of llama.cpp's", flush=True)
    times: dict[Path, list[float]] = {path: [] for path in models}
    for _ in range(given.rounds):
        for path, model in models.items():
            model.stepped(ids[:32], 16)  # its last 16 tokens are steps
            began = time.process_time()
            model.stepped(ids[:48], 16)
            whole = time.process_time() - began
            began = time.process_time()
            model.stepped(ids[:32], 16)
            times[path].append((whole - (time.process_time() - began)) / 16)
    for path, seconds in times.items():
        print(f"{path.name}: {median(seconds) * 1e3:.2f} ms a step, least {min(seconds) * 1e3:.2f}")


if __name__ == "__main__":
    main()
