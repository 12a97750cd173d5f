"""The backend of bundles compiled for ONNX Runtime on a CPU."""

from __future__ import annotations

from adaptc.runtime.backends.backend import DecoderOptions, Device
from adaptc.runtime.backends.host.loading import draft_decoder, host_decoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.backends.onnxruntime_cpu.packed import check_packed
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.verifier import DraftDecoder


class OnnxRuntimeCpu:
    """See `Backend`; decoders keep their KV cache in the host's memory."""

    device: Device = "cpu"
    takes_images = True

    def check(self, bundle: Bundle) -> None:
        """See `Backend.check`: the weights that `adaptc build` packed."""
        check_packed(bundle.path / "graphs")

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> OrtEngine:
        """See `Backend.engine`."""
        return OrtEngine(bundle.onnx(bundle.manifest.graphs[graph].file), threads)

    def decoder(self, bundle: Bundle, options: DecoderOptions) -> BatchDecoder:
        """See `Backend.decoder`."""
        return host_decoder(bundle, lambda graph: self.engine(bundle, graph, options.threads), options)

    def draft_decoder(self, bundle: Bundle, options: DecoderOptions) -> DraftDecoder | None:
        """See `Backend.draft_decoder`."""
        return draft_decoder(bundle, lambda graph: self.engine(bundle, graph, options.threads), options)
