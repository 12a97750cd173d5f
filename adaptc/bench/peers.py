"""Other engines that run the same model, measured as adaptc is.

Each runs in a process of its own: `python -m adaptc.bench.peers NAME JOB` loads the model, warms up, answers the
prompts of the job (JSON, see `Job`) and prints one line of JSON (see `measure`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from adaptc.bench.peer_loaders import (
    Job,
    Write,
    load_adaptc,
    load_llama_cpp,
    load_onnxruntime_genai,
    load_openvino_genai,
    load_transformers,
)
from adaptc.machine.disturbance import Clock
from adaptc.machine.memory import peak_rss_bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine to measure.

    Attributes:
        name: As `--against` has it.
        module: Python module it needs.
        distribution: The package this module comes from.
        install: How to get it.
        form: What its model is: `bundle`, `genai`, `gguf` or `folder` (Hugging Face, dense).
        computes: Weights and numbers it computes with.
        load: Job -> a function that answers; imports happen in it.
    """

    name: str
    module: str
    distribution: str
    install: str
    form: str
    computes: str
    load: Callable[[Job], Write]

    @property
    def installed(self) -> bool:
        """Whether its module is there; it is not imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return importlib.metadata.version(self.distribution)


_TORCH = "pip install 'adaptc[compile]'"

ADAPTC = Peer("adaptc", "onnxruntime", "adaptc", "pip install 'adaptc[cpu]'", "bundle", "", load_adaptc)

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "onnxruntime-genai",
            "onnxruntime_genai",
            "onnxruntime-genai",
            "pip install onnxruntime-genai==0.18.0",
            "genai",
            "int4, block 32, accuracy level 4, by its own builder",
            load_onnxruntime_genai,
        ),
        Peer(
            "llama.cpp",
            "llama_cpp",
            "llama-cpp-python",
            "pip install llama-cpp-python",
            "gguf",
            "the source's own GGUF file",
            load_llama_cpp,
        ),
        Peer(
            "openvino-genai",
            "openvino_genai",
            "openvino-genai",
            "pip install openvino-genai",
            "gguf",
            "the source's own GGUF file, as OpenVINO converts it",
            load_openvino_genai,
        ),
        Peer(
            "transformers",
            "transformers",
            "transformers",
            _TORCH,
            "folder",
            "bfloat16, eager",
            load_transformers("bfloat16"),
        ),
        Peer(
            "transformers-fp32",
            "transformers",
            "transformers",
            _TORCH,
            "folder",
            "float32, eager",
            load_transformers("float32"),
        ),
    )
}
"""Engines that `adaptc bench --against` knows, by name."""


def measure(peer: Peer, job: Job) -> dict[str, Any]:
    """Load, warm up, and answer the job's prompts.

    Returns:
        `load_seconds`; `samples` and `long_samples`, a list of `[prefill, first token, decode, others]` each: seconds
        as in `Sample`, and how many processors others kept busy meanwhile, or None; `ids` of the last answer;
        `peak_rss_bytes` of this process.
    """
    start = perf_counter()
    write = peer.load(job)
    loaded = perf_counter()
    write(job.prompt, min(8, job.new_tokens))
    if job.long_prompt:
        write(job.long_prompt, 1)
    samples, long_samples = [], []
    ids: list[int] = []
    for _ in range(job.samples):
        figures, ids = _timed(write, job.prompt, job.new_tokens)
        samples.append(figures)
        assert len(ids) == job.new_tokens
        if job.long_prompt:
            long_samples.append(_timed(write, job.long_prompt, 1)[0])
    return {
        "load_seconds": loaded - start,
        "samples": samples,
        "long_samples": long_samples,
        "ids": ids,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _timed(write: Write, prompt: list[int], new_tokens: int) -> tuple[list[float | None], list[int]]:
    before = Clock.now()
    sample = write(prompt, new_tokens)
    others = Clock.now().others_since(before)
    return [sample.prefill_seconds, sample.first_seconds, sample.decode_seconds, others], sample.ids


def main(arguments: Sequence[str]) -> None:
    """Run one peer: its name, and its job as JSON."""
    name, job = arguments
    peer = ADAPTC if name == ADAPTC.name else PEERS[name]
    sys.stdout.write(json.dumps(measure(peer, Job(**json.loads(job)))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
