"""From a bundle with steps of GPU kernels to a decoder on this machine's GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptc.runtime.backends.cuda.bundle_partitions import read_steps
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.graph import GpuResources, row_sizes
from adaptc.runtime.backends.cuda.kernel_steps.memory import SharedMemory
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernels.packed_gemm import ROWS
from adaptc.runtime.backends.cuda.loading import decoder_of
from adaptc.runtime.backends.cuda.machinery import GraphForm, KernelForm
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.onnxruntime_cuda.load_prompts import (
    MOST_TOKENS,
    LoadedPrompts,
    load_prompts,
    prompt_makers,
)
from adaptc.runtime.backends.onnxruntime_cuda.sessions import PromptSessions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import EngineError

LEAST_SM = 80
"""Compute capability from which there are the kernels' instructions."""


@dataclass(frozen=True, slots=True)
class KernelRunner:
    """What kernels of ours serve, and ONNX Runtime for prompts; see `StepRunner`.

    Attributes:
        prompts: Reads long prompts, by graph; {} where kernels of ours do.
    """

    prompts: Mapping[str, LoadedPrompts] = field(default_factory=dict)

    def rows(self) -> tuple[int, ...]:
        """Rows that a step may have: steps are captured for these."""
        return (1, 2, 4, 8, 16, 32, ROWS)

    def tokens(self) -> int:
        """Most tokens of a prompt at once."""
        return MOST_TOKENS if self.prompts else ROWS

    def close(self) -> None:
        """Free what ONNX Runtime took."""
        for loaded in self.prompts.values():
            loaded.close()


def kernel_decoder(
    cuda: Cuda, bundle: Bundle, batch: int, chunk: int, engine: PromptSessions | None = None
) -> GpuDecoder | GpuRoutes:
    """Put a bundle's decoder, or its trunk and tails, onto a GPU; on an error nothing stays there.

    Args:
        cuda: The GPU; closed with the decoder.
        bundle: For ONNX Runtime.
        batch: Most sequences written at the same time.
        chunk: Most tokens of a prompt read at once.
        engine: What reads pieces of prompts of more than `ROWS` tokens; None for kernels of ours, which read up to
            `ROWS` at once. If it cannot load a bundle's graphs, a warning says so, and kernels of ours read prompts.

    Raises:
        BundleError: the bundle runs on a CPU only, or is damaged.
        EngineError: NVRTC is not installed, or the GPU is too old or has too little memory.
        RequestError: more sequences than kernels serve.
    """
    runner = KernelRunner()
    try:
        _check_device(cuda)
        steps, stream = read_steps(bundle), cuda.stream()
        loaded = load_prompts(bundle, steps, engine, stream) if chunk > ROWS else {}
        runner = KernelRunner(loaded)
        sizes, chunk = row_sizes(runner, batch), min(chunk, runner.tokens())
        weights = PackedWeights(cuda, bundle)
        shared = SharedMemory.of(cuda, steps.values(), max(sizes[-1], min(chunk, ROWS)))
        makers = prompt_makers(cuda, steps, loaded, weights, chunk, shared)
        gpu = GpuResources(cuda, stream, runner, shared, sizes, chunk)
        policies = {name: gates.batch for name, gates in bundle.manifest.gates.items()}
        forms: dict[str, GraphForm] = {}
        for name, step in steps.items():
            policy = policies.get(name, "rows")
            together = policy if policy in ("any", "group") else ""
            forms[name] = KernelForm(cuda, step, weights, shared, together, makers.get(name))
        decoder = decoder_of(gpu, bundle, forms, batch)
        weights.done()
    except BaseException:
        runner.close()
        cuda.close()
        raise
    return decoder


def _check_device(cuda: Cuda) -> None:
    """Refuse a GPU that has not the kernels' instructions."""
    if cuda.device.sm < LEAST_SM:
        raise EngineError(
            f"cuda: {cuda.device.name} has compute capability {cuda.device.sm / 10}; 8.0 or newer is right, or "
            "device='cpu'"
        )
