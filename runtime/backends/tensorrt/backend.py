"""The backend of bundles compiled for TensorRT, or TensorRT for RTX, whose engines were built on this machine."""

from __future__ import annotations

from adaptc.runtime.backends.backend import DecoderOptions, Device
from adaptc.runtime.backends.cuda.engine import GpuEngine
from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder, tensorrt_engine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.validation import check_count


class TensorRt:
    """See `Backend`; weights, KV cache and states lie in the GPU's memory."""

    device: Device = "gpu"
    takes_images = False

    def check(self, bundle: Bundle) -> None:
        """See `Backend.check`: each engine is compared with its record when it is read."""

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> GpuEngine:
        """See `Backend.engine`."""
        return tensorrt_engine(bundle, graph)

    def decoder(self, bundle: Bundle, options: DecoderOptions) -> BatchDecoder:
        """See `Backend.decoder`."""
        check_count("batch", options.batch)
        check_count("chunk", options.chunk)
        return tensorrt_decoder(bundle, options.batch, options.chunk)

    def draft_decoder(self, bundle: Bundle, options: DecoderOptions) -> None:
        """See `Backend.draft_decoder`; nothing verifies drafts on a GPU yet."""
