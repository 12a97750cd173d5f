"""The backend of bundles compiled for NumPy."""

from __future__ import annotations

from adaptc.runtime.backends.backend import DecoderOptions, Device
from adaptc.runtime.backends.host.loading import host_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.decoder import BatchDecoder
from tests.models.numpy_engine.engine import NumpyEngine


class NumpyBackend:
    """See `Backend`."""

    device: Device = "cpu"
    takes_images = True

    def check(self, bundle: Bundle) -> None:
        """See `Backend.check`: nothing is built on this machine."""

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> NumpyEngine:
        """See `Backend.engine`."""
        spec = bundle.manifest.graphs[graph]
        return NumpyEngine(bundle.path / spec.file, spec)

    def decoder(self, bundle: Bundle, options: DecoderOptions) -> BatchDecoder:
        """See `Backend.decoder`."""
        return host_decoder(bundle, lambda graph: self.engine(bundle, graph), options)

    def draft_decoder(self, bundle: Bundle, options: DecoderOptions) -> None:
        """See `Backend.draft_decoder`."""
