"""TensorRT and TensorRT-RTX behind one module: what differs is asked for by feature, and both are imported late."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from adaptc.runtime.errors import EngineError

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Module of each flavour."""

WIDE = frozenset(("ELEMENTWISE", "UNARY", "REDUCE", "SOFTMAX", "ACTIVATION"))
"""Kinds of layers that compute in float32."""

INSTALL = {"tensorrt": "pip install 'adaptc[tensorrt]'", "tensorrt-rtx": "pip install 'adaptc[rtx]'"}

Sizes = Mapping[str, tuple[int, ...]]
"""A shape for each input of a graph."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes that one engine serves: `least` to `most`, tuned for `best`; all equal for fixed ones."""

    least: Sizes
    best: Sizes
    most: Sizes

    @classmethod
    def fixed(cls, sizes: Sizes) -> Profile:
        """One shape for each input."""
        return cls(sizes, sizes, sizes)


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder gave.

    Attributes:
        plan: The engine, serialized.
        listing: What was compiled, a line a step; "" where the builder tells nothing.
    """

    plan: bytes
    listing: str


@dataclass(slots=True)
class _Log:
    """The builder's messages; errors end up in ours."""

    errors: list[str] = field(default_factory=list)
    listing: str = ""


class Trt:
    """One flavour, loaded.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        version: Version of the library.
    """

    def __init__(self, flavour: str) -> None:
        """Import the library.

        Raises:
            EngineError: it is not installed or cannot be loaded.
        """
        if flavour not in FLAVOURS:
            raise EngineError(f"{flavour}: no such engine; there are: {', '.join(FLAVOURS)}")
        try:
            self.module: ModuleType = importlib.import_module(FLAVOURS[flavour])
        except (ImportError, OSError) as error:
            raise EngineError(f"{flavour}: not installed or not loadable ({error}); {INSTALL[flavour]}") from error
        self.flavour = flavour
        self.version: str = self.module.__version__
        self._log = _Log()
        self._logger = _logger(self.module, self._log)

    @property
    def typed(self) -> bool:
        """Whether the graph alone says what is computed in which type (from version 10 on, and in RTX)."""
        return not hasattr(self.module.BuilderFlag, "FP16")

    def build(
        self, content: bytes, profile: Profile, sm: Sequence[int] = (), cache: bytes = b"", path: str = ""
    ) -> tuple[Built, bytes]:
        """Build an engine.

        Args:
            content: The graph, ONNX.
            profile: Its inputs' shapes.
            sm: Compute capabilities, 86 for 8.6; RTX only, elsewhere it is this machine's.
            cache: What an earlier build returned: timings of kernels.
            path: The graph's file, if its weights lie beside it.

        Returns:
            The engine, and timings for the next build.

        Raises:
            EngineError: the parser or the builder refuses the graph; with their first reason.
        """
        for strict in (False,) if self.typed else (True, False):
            built = self._build((content, path), profile, sm, cache, strict)
            if built is not None:
                return built
        reason = _first(self._log.errors)
        mend = "; free some memory of the GPU" if "memory" in reason.lower() else ""
        raise EngineError(f"{self.flavour} {self.version}: cannot build the engine: {reason}{mend}")

    def _build(
        self, graph: tuple[bytes, str], profile: Profile, sm: Sequence[int], cache: bytes, strict: bool
    ) -> tuple[Built, bytes] | None:
        """One attempt; None if the builder finds no way. `strict` allows no other types than the graph's."""
        trt = self.module
        self._log.errors.clear()
        builder = trt.Builder(self._logger)
        network = builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self._logger)
        content, path = graph
        if not (parser.parse(content, path) if path else parser.parse(content)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise EngineError(f"{self.flavour} {self.version}: cannot read the graph: {_first(reasons)}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._fix_shapes(builder, network, config, profile)
        self._choose_types(network, config, strict)
        self._target(config, sm)
        config.set_timing_cache(config.create_timing_cache(cache), ignore_mismatch=True)
        self._log.listing = ""
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return None
        return Built(bytes(plan), self._log.listing), bytes(config.get_timing_cache().serialize())

    def runtime(self) -> Any:
        """The library's runtime, which loads engines."""
        return self.module.Runtime(self._logger)

    def layers(self, plan: bytes) -> tuple[str, ...]:
        """What was compiled, a line a step, where only the engine can tell (8.6); empty without a GPU."""
        engine = self.runtime().deserialize_cuda_engine(plan)
        if engine is None:
            return ()
        form = self.module.LayerInformationFormat.ONELINE
        text: str = engine.create_engine_inspector().get_engine_information(form)
        return tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())

    def last_error(self) -> str:
        """The newest error the library logged."""
        return self._log.errors[-1] if self._log.errors else ""

    def _network_flags(self) -> int:
        flags = self.module.NetworkDefinitionCreationFlag
        if self.typed:
            return 1 << int(flags.STRONGLY_TYPED)
        return 1 << int(flags.EXPLICIT_BATCH)

    def _fix_shapes(self, builder: Any, network: Any, config: Any, profile: Profile) -> None:
        """Give every input its shape; one that does not vary is fixed, which the builder uses."""
        moving = False
        given = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            least, best, most = (sizes[tensor.name] for sizes in (profile.least, profile.best, profile.most))
            if least == most:
                tensor.shape = least
            else:
                given.set_shape(tensor.name, least, best, most)
                moving = True
        if moving:
            config.add_optimization_profile(given)

    def _choose_types(self, network: Any, config: Any, strict: bool) -> None:
        """What the graph says is computed in float32 stays float32, also where the builder may choose."""
        trt = self.module
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.typed:
            return
        config.set_flag(trt.BuilderFlag.FP16)
        name = "OBEY_PRECISION_CONSTRAINTS" if strict else "PREFER_PRECISION_CONSTRAINTS"
        config.set_flag(getattr(trt.BuilderFlag, name))
        # The library's own kernels only: cuBLAS and cuDNN need not be installed.
        sources = trt.TacticSource
        own = [
            getattr(sources, name) for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS") if hasattr(sources, name)
        ]
        config.set_tactic_sources(sum(1 << int(source) for source in own))
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.get_output(0).dtype not in (trt.float32, trt.float16):
                continue
            # Every product is in half precision (`legalize`), but a network that is not typed calls its tensors float:
            # bound to that, 8.6 widened each weight at every step.
            if layer.type.name == "MATRIX_MULTIPLY":
                layer.precision = trt.float16
            elif layer.type.name == "GATHER" and layer.get_input(0).dtype == trt.float16:
                layer.precision = trt.float16  # a table of embeddings: looked up as it lies, not widened first
            elif layer.type.name in WIDE:
                layer.precision = trt.float32
            else:
                continue
            for i in range(layer.num_outputs):
                layer.set_output_type(i, layer.precision)

    def _target(self, config: Any, sm: Sequence[int]) -> None:
        """What it is built for; one stream, so that it can be captured as a straight line."""
        if hasattr(config, "max_aux_streams"):
            config.max_aux_streams = 0
        if not sm:
            return
        kinds = getattr(self.module, "ComputeCapability", None)
        if kinds is None:
            raise EngineError(f"sm: {self.flavour} builds for the GPU of this machine; only tensorrt-rtx takes --sm")
        known = {name: kind for name, kind in kinds.__members__.items() if name.startswith("SM")}
        config.num_compute_capabilities = len(sm)
        for index, each in enumerate(sm):
            if f"SM{each}" not in known:
                names = ", ".join(name.removeprefix("SM") for name in known)
                raise EngineError(f"sm: {each}; {self.flavour} {self.version} builds for {names}")
            config.set_compute_capability(known[f"SM{each}"], index)


def _logger(trt: ModuleType, log: _Log) -> Any:
    """A logger that keeps errors and the list of compiled layers."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.errors.append(message)
                del log.errors[:-20]
            elif message.startswith("Layers:"):
                log.listing = message

    return Logger()


def _first(reasons: Sequence[str]) -> str:
    """The first reason that has words, on one line; 8.6 gives nothing but "1: " where it lacks memory."""
    lines = (" ".join(reason.split()) for reason in reasons)
    return next((line for line in lines if any(map(str.isalpha, line))), "it gives no reason")
