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
    from adaptc.runtime.budget import Skips
    from adaptc.runtime.bundle import Bundle, open_bundle
    from adaptc.runtime.engine import Engine
    from adaptc.runtime.fake import FakeEngine
    from adaptc.runtime.generation import Result, Trace
    from adaptc.runtime.infer import Inference, ModalSession
    from adaptc.runtime.jobs import JobQueue, Ticket
    from adaptc.runtime.loading import load, load_modal
    from adaptc.runtime.manifest import DecoderSpec, GateSpec, Manifest, TensorSpec
    from adaptc.runtime.ort import OrtEngine
    from adaptc.runtime.router import Choice
    from adaptc.runtime.sampling import Sampling
    from adaptc.runtime.session import Session

__all__ = [
    "AdaptcError",
    "Bundle",
    "BundleError",
    "Choice",
    "DecoderSpec",
    "Engine",
    "EngineError",
    "FakeEngine",
    "GateSpec",
    "Inference",
    "JobQueue",
    "Manifest",
    "ModalSession",
    "OrtEngine",
    "RequestError",
    "Result",
    "Sampling",
    "Session",
    "Skips",
    "TensorSpec",
    "Ticket",
    "Trace",
    "load",
    "load_modal",
    "open_bundle",
]

# Where each name is, so that importing this package costs nothing until one is used.
_HOMES = {
    "Bundle": "bundle",
    "Choice": "router",
    "DecoderSpec": "manifest",
    "Engine": "engine",
    "FakeEngine": "fake",
    "GateSpec": "manifest",
    "Inference": "infer",
    "JobQueue": "jobs",
    "Manifest": "manifest",
    "ModalSession": "infer",
    "OrtEngine": "ort",
    "Result": "generation",
    "Sampling": "sampling",
    "Session": "session",
    "Skips": "budget",
    "TensorSpec": "manifest",
    "Ticket": "jobs",
    "Trace": "generation",
    "load": "loading",
    "load_modal": "loading",
    "open_bundle": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
