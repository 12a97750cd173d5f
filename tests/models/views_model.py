"""A multimodal model that one can compute by hand: its answer is the sum of what each modality brings."""

from __future__ import annotations

import numpy as np

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.bundle.manifest import ModalitySpec, ModalSpec, SubsetSpec, TensorSpec
from adaptc.runtime.multimodal.profile import ModalProfile, SubsetProfile
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.multimodal.subsets import ModalGraphs

NAMES = ("cheap", "dear")
MODAL = ModalSpec(
    {name: ModalitySpec((name,), f"m.encode.{name}", (f"{name}_features",)) for name in NAMES},
    (
        SubsetSpec(("cheap",), "m.fuse.cheap"),
        SubsetSpec(("dear",), "m.fuse.dear"),
        SubsetSpec(NAMES, "m.fuse.cheap+dear"),
    ),
)
INPUTS = {name: TensorSpec(name, "float32", ("batch", 3)) for name in NAMES}
PROFILE = ModalProfile(
    model="m",
    cpu="hand",
    threads=1,
    batches=(1, 2, 4),
    rows=100,
    subsets=(
        SubsetProfile(0.8, 0.7, 0.9, modalities=("cheap",), seconds=(0.001, 0.001, 0.002)),
        SubsetProfile(0.85, 0.8, 0.9, modalities=("dear",), seconds=(0.009, 0.018, 0.036)),
        SubsetProfile(0.9, 0.8, 0.95, modalities=NAMES, seconds=(0.01, 0.02, 0.04)),
    ),
    encoders={"cheap": (0.001, 0.001, 0.001), "dear": (0.009, 0.018, 0.036)},
    gate=None,
)


def engine(graph: str) -> FakeEngine:
    """Encoders double; the rest adds up, into class 0 and its negative into class 1."""
    what = graph.rpartition(".")[2]
    if ".encode." in graph:

        def encode(feeds: Arrays, outputs: Arrays) -> None:
            outputs[f"{what}_features"][:] = feeds[what] * 2

        return FakeEngine((INPUTS[what],), (TensorSpec(f"{what}_features", "float32", ("batch", 3)),), encode)
    names = what.split("+")

    def fuse(feeds: Arrays, outputs: Arrays) -> None:
        total = np.sum([feeds[f"{name}_features"].sum(1) for name in names], 0)
        outputs["logits"][:] = np.stack([total, -total], 1)

    specs = tuple(TensorSpec(f"{name}_features", "float32", ("batch", 3)) for name in names)
    return FakeEngine(specs, (TensorSpec("logits", "float32", ("batch", 2)),), fuse)


def session(profile: ModalProfile | None = PROFILE, cache_bytes: int = 1 << 20) -> ModalSession:
    return ModalSession(MODAL, ModalGraphs(MODAL, engine, cache_bytes), INPUTS, None, profile)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(count, 3)).astype(np.float32) for name in NAMES}
