"""The backend of bundles for ONNX Runtime that run on an NVIDIA GPU: nothing is built, and any CUDA GPU will do."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.backends.backend import DecoderOptions, Device
from adaptc.runtime.backends.cuda.bundle_partitions import has_steps, read_steps
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernels.packed_gemm import ROWS
from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.onnxruntime_cuda.load_prompts import prompt_engine
from adaptc.runtime.backends.onnxruntime_cuda.loading import kernel_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.validation import check_count


@dataclass(frozen=True, slots=True)
class OnnxRuntimeCuda:
    """See `Backend`; weights, KV cache and states lie in the GPU's memory.

    Attributes:
        index: Which of the machine's GPUs.
    """

    index: int = 0

    @property
    def device(self) -> Device:
        """See `Backend`."""
        return "gpu"

    @property
    def takes_images(self) -> bool:
        """See `Backend`."""
        return False

    def check(self, bundle: Bundle) -> None:
        """See `Backend.check`: nothing is built."""

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> Engine:
        """See `Backend.engine`."""
        raise EngineError(f"{bundle.path}: {graph} continues no sequence; device='cpu' runs it")

    def decoder(self, bundle: Bundle, options: DecoderOptions) -> BatchDecoder:
        """See `Backend.decoder`."""
        if check_count("batch", options.batch) > ROWS:
            raise RequestError(f"batch: {options.batch}; a GPU's kernels serve up to {ROWS} sequences at a time")
        if not has_steps(bundle):
            read_steps(bundle)  # says what the bundle lacks, GPU or not
        check_count("chunk", options.chunk)
        engine = prompt_engine(bundle, self.index) if options.chunk > ROWS else None
        return kernel_decoder(Cuda(self.index), bundle, options.batch, options.chunk, engine)

    def draft_decoder(self, bundle: Bundle, options: DecoderOptions) -> None:
        """See `Backend.draft_decoder`; nothing verifies drafts on a GPU yet."""
