"""A model that a Python function builds, with its weights in a safetensors file.

`module:model.py:build` names a file and a function in it. The function is run because the spec's author names it, and
only then: it is the author's own code, as a pass from another package is. Weights are never unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.tensors import Tensors

if TYPE_CHECKING:
    import torch

    from adaptc.ir.weight_names import UnreadTensors

Built = tuple["torch.nn.Module", "dict[str, torch.Tensor]"]
"""What a factory returns: the model in eval mode, and one example of each input of its `forward`, by name."""

_FLOATS = ("F", "BF")


@dataclass(frozen=True, slots=True)
class ModuleConfig:
    """Stands in for a transformers config: enough to name the model and to tell two apart."""

    factory: str
    sha256: str
    model_type: str = "module"

    def to_dict(self) -> dict[str, str]:
        """Return the fields, for cache keys."""
        return {"factory": self.factory, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class ModuleSource(Source):
    """A factory in a Python file.

    Attributes:
        function: The factory's name in the file.
        weights: The safetensors file that holds the model's state.
        tokenizer: Folder with a tokenizer.json, if the model reads text.
    """

    function: str = field(default="", kw_only=True)
    weights: Path = field(default=Path(), kw_only=True)
    tokenizer: Path | None = field(default=None, kw_only=True)

    def config(self) -> ModuleConfig:
        """See `Source.config`; there is none, so it is the factory's own hash."""
        return ModuleConfig(self.origin, hashlib.sha256(self.path.read_bytes()).hexdigest())

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`; a model that generates nothing has none."""
        return TokenIds(None, (), None)

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`; empty for a model without text."""
        if self.tokenizer is None:
            return {}
        wanted = [self.tokenizer / name for name in ("tokenizer.json", "tokenizer_config.json")]
        if not wanted[0].is_file():
            raise LoadError(f"{self.origin}: tokenizer: no {wanted[0]}; a folder with a tokenizer.json is right")
        files = {path.name: path.read_bytes() for path in wanted if path.is_file()}
        return {"tokenizer_config.json": b"{}\n"} | files

    def tensors(self) -> UnreadTensors:
        """See `Source.tensors`: the file's floating-point tensors, by the module's own names."""
        from safetensors import safe_open

        def read(name: str) -> torch.Tensor:
            with safe_open(self.weights, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
            return tensor

        shapes = self.shapes()
        return Tensors(self.origin, self.dtype, {name: partial(read, name) for name in shapes}, shapes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the file's floating-point tensors; no weight is read.

        Raises:
            LoadError: the file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.weights, framework="pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
                return {n: tuple(part.get_shape()) for n, part in parts.items() if part.get_dtype().startswith(_FLOATS)}
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{self.origin}: {self.weights} cannot be read: {one_line(error)}") from error

    def files(self) -> dict[str, Path]:
        """See `Source.files`: the factory's file, the weights, and the tokenizer."""
        files = {self.path.name: self.path, "weights.safetensors": self.weights}
        if self.tokenizer is not None:
            files |= {f"tokenizer/{name}": self.tokenizer / name for name in self.tokenizer_files()}
            files = {name: path for name, path in files.items() if path.exists()}
        return files

    def licence(self) -> str | None:
        """See `Source.licence`; a factory states none."""
        return None

    def build(self) -> Built:
        """Run the factory and load the weights.

        Raises:
            LoadError: the file has no such function, it fails or returns something else, or the weights are of another
                model.
        """
        import torch

        factory = getattr(_module(self.path), self.function, None)
        if not callable(factory):
            raise LoadError(f"{self.origin}: {self.path.name} has no function {self.function!r}")
        try:
            built = factory()
        except Exception as error:  # the author's code may raise anything
            raise LoadError(f"{self.origin}: failed: {type(error).__name__}: {one_line(error)}") from error
        fits = isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], torch.nn.Module)
        if not fits or not isinstance(built[1], dict) or not built[1]:
            raise LoadError(f"{self.origin}: returned {type(built).__name__}; (module, {{input: example}}) is right")
        module, examples = built
        _load_state(self.origin, module, self.tensors())
        return module.eval().requires_grad_(False), examples


def _module(path: Path) -> ModuleType:
    """Run the file as a module of its own name; files beside it can be imported while it runs."""
    name = f"adaptc_factory_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and torch look names up
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the author's code may raise anything
        del sys.modules[name]
        raise LoadError(f"{path}: failed: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _load_state(origin: str, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the weights into the module; every one must have a place, and every place a weight."""
    wanted: dict[str, Any] = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
    for name in wanted:
        if name not in tensors:
            raise LoadError(f"{origin}: the weights have no {name}, which the factory's model needs")
    for name in tensors:
        if name not in wanted:
            raise LoadError(f"{origin}: tensor {name} has no place in the factory's model")
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape != place.shape:
            raise LoadError(f"{origin}: {name} is {list(tensor.shape)}; the model's is {list(place.shape)}")
    module.load_state_dict(dict(tensors), strict=False, assign=True)
