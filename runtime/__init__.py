"""Run a compiled bundle. Needs numpy and one engine library; never torch.

>>> from adaptc import runtime
>>> with runtime.load("bundle/") as session:  # doctest: +SKIP
...     print(session.generate("The capital of France is", max_new_tokens=8).text)
"""

from __future__ import annotations

if __name__ != "adaptc.runtime":
    raise ImportError("import adaptc.runtime, not runtime")

from importlib import import_module
from typing import TYPE_CHECKING

from adaptc.runtime.errors import AdaptcError, BundleError, EngineError, RequestError

if TYPE_CHECKING:
    from adaptc.runtime.backends.engine import Engine
    from adaptc.runtime.backends.fake import FakeEngine
    from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
    from adaptc.runtime.bundle.folder import Bundle, open_bundle
    from adaptc.runtime.bundle.manifest import DecoderSpec, Manifest, TensorSpec
    from adaptc.runtime.bundle.skip_gates import SkipGates
    from adaptc.runtime.encoding.session import Classification, EncoderSession
    from adaptc.runtime.generation.load_control import LoadTargets
    from adaptc.runtime.generation.result import Result, Trace
    from adaptc.runtime.generation.session import Session
    from adaptc.runtime.generation.stream import AsyncStream, Stream
    from adaptc.runtime.loading import load, load_encoder, load_modal, load_tokenizer
    from adaptc.runtime.model.budget import Skips
    from adaptc.runtime.model.router import Choice
    from adaptc.runtime.model.scoring import Scores
    from adaptc.runtime.multimodal.jobs import JobQueue, Ticket
    from adaptc.runtime.multimodal.session import Inference, ModalSession
    from adaptc.runtime.text.sampling import Sampling
    from adaptc.runtime.text.tokenizer import Tokenizer

__all__ = [
    "AdaptcError",
    "AsyncStream",
    "Bundle",
    "BundleError",
    "Choice",
    "Classification",
    "DecoderSpec",
    "EncoderSession",
    "Engine",
    "EngineError",
    "FakeEngine",
    "Inference",
    "JobQueue",
    "LoadTargets",
    "Manifest",
    "ModalSession",
    "OrtEngine",
    "RequestError",
    "Result",
    "Sampling",
    "Scores",
    "Session",
    "SkipGates",
    "Skips",
    "Stream",
    "TensorSpec",
    "Ticket",
    "Tokenizer",
    "Trace",
    "load",
    "load_encoder",
    "load_modal",
    "load_tokenizer",
    "open_bundle",
]

# Where each name is, so that importing this package costs nothing until one is used.
_HOMES = {
    "AsyncStream": "generation.stream",
    "Bundle": "bundle.folder",
    "Choice": "model.router",
    "Classification": "encoding.session",
    "DecoderSpec": "bundle.manifest",
    "EncoderSession": "encoding.session",
    "Engine": "backends.engine",
    "FakeEngine": "backends.fake",
    "Inference": "multimodal.session",
    "JobQueue": "multimodal.jobs",
    "LoadTargets": "generation.load_control",
    "Manifest": "bundle.manifest",
    "ModalSession": "multimodal.session",
    "OrtEngine": "backends.onnxruntime_cpu.engine",
    "Result": "generation.result",
    "Sampling": "text.sampling",
    "Scores": "model.scoring",
    "Session": "generation.session",
    "SkipGates": "bundle.skip_gates",
    "Skips": "model.budget",
    "Stream": "generation.stream",
    "TensorSpec": "bundle.manifest",
    "Ticket": "multimodal.jobs",
    "Tokenizer": "text.tokenizer",
    "Trace": "generation.result",
    "load": "loading",
    "load_encoder": "loading",
    "load_modal": "loading",
    "load_tokenizer": "loading",
    "open_bundle": "bundle.folder",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
