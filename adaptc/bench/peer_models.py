"""The source model of a bundle in the form a peer takes it; what has to be converted is converted once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from adaptc.compiler.cache import Cache, key_of
from adaptc.errors import LoadError
from adaptc.evaluation.reference import folder_of
from adaptc.runtime.progress import Progress
from adaptc.sources.base import Source

_BUILDER_SECONDS = 3600


def model_of(form: str, source: Source, sha256: str, cache: Cache, progress: Progress) -> Path:
    """The source in a peer's form.

    Args:
        form: `gguf`, `folder` or `genai`; see `peers.Peer`.
        source: The model.
        sha256: Its hash.
        cache: Where converted models are kept.
        progress: Told of stages and steps.

    Raises:
        LoadError: this source cannot be had in this form.
    """
    if form == "gguf":
        return _gguf(source)
    folder = folder_of(source, sha256, cache, progress)
    return folder if form == "folder" else _genai(folder, sha256, cache, progress)


def _gguf(source: Source) -> Path:
    if source.path.suffix != ".gguf":
        raise LoadError(f"{source.origin}: this engine reads GGUF files; compile from one to compare with it")
    return source.path


def _genai(folder: Path, sha256: str, cache: Cache, progress: Progress) -> Path:
    def make(into: Path) -> None:
        progress.stage("build the model by onnxruntime-genai's own builder, once")
        with tempfile.TemporaryDirectory() as scratch:
            options = ["int4_block_size=32", "int4_accuracy_level=4"]
            run_builder(
                [
                    *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
                    *("-i", str(folder), "-o", str(into), "-c", scratch, "-p", "int4", "-e", "cpu"),
                    *("--extra_options", *options),
                ]
            )

    return cache.get("genai", key_of("genai", 1, sha256, version("onnxruntime-genai")), make)


def run_builder(command: list[str]) -> None:
    """Run a command that builds a model.

    Raises:
        LoadError: it failed; the message has the last line it wrote.
    """
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=offline, timeout=_BUILDER_SECONDS, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        message = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {done.returncode}")
        raise LoadError(f"onnxruntime-genai: its builder failed: {message[:200]}")
