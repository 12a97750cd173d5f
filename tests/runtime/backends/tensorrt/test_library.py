"""How a builder that may choose types itself is bound to the graph's: on a stand-in for TensorRT 8.6."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.errors import EngineError


class Layer:
    """A layer that remembers what it was bound to."""

    def __init__(self, kind: str, dtype: str) -> None:
        self.type = SimpleNamespace(name=kind)
        self.num_outputs = 1
        self.precision: str | None = None
        self.given: str | None = None
        self._dtype = dtype

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(dtype=self._dtype)

    def set_output_type(self, index: int, dtype: str) -> None:
        self.given = dtype


def bound(*layers: Layer, strict: bool = True) -> list[str]:
    """Bind the layers' types; the flags that the builder is given."""
    flags: list[str] = []
    names = ("FP16", "TF32", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
    module = SimpleNamespace(
        float16="half",
        float32="float",
        BuilderFlag=SimpleNamespace(**{name: name for name in names}),
        TacticSource=SimpleNamespace(CUBLAS=0, EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4),
    )
    config = SimpleNamespace(
        set_flag=flags.append,
        clear_flag=lambda flag: flags.append(f"no {flag}"),
        set_tactic_sources=lambda mask: flags.append(f"sources {mask}"),
    )
    trt = object.__new__(Trt)
    trt.module = module  # type: ignore[assignment]
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    trt._choose_types(network, config, strict)
    return flags


def test_products_are_in_half_precision_whatever_the_network_calls_them() -> None:
    product, typed = Layer("MATRIX_MULTIPLY", "float"), Layer("MATRIX_MULTIPLY", "half")
    bound(product, typed)
    assert (product.precision, product.given) == (typed.precision, typed.given) == ("half", "half")


def test_all_else_that_computes_is_in_float32() -> None:
    layers = [Layer(kind, "float") for kind in ("ELEMENTWISE", "UNARY", "REDUCE", "SOFTMAX", "ACTIVATION")]
    bound(*layers)
    assert {layer.precision for layer in layers} == {"float"}


def test_whole_numbers_and_what_only_moves_are_left_alone() -> None:
    layers = [Layer("ELEMENTWISE", "int"), Layer("SHUFFLE", "float"), Layer("CAST", "half")]
    bound(*layers)
    assert {layer.precision for layer in layers} == {None}


def test_flags_and_sources() -> None:
    expected = ["no TF32", "FP16", "OBEY_PRECISION_CONSTRAINTS", "sources 24"]
    assert bound() == expected
    assert bound(strict=False)[2] == "PREFER_PRECISION_CONSTRAINTS"


def test_a_flavour_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="openvino: no such engine"):
        Trt("openvino")


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt: not installed or not loadable \(.*\)"):
        Trt("tensorrt")
