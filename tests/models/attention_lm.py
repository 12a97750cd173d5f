"""A real, tiny language model as an ONNX graph in the decoder form, and the same model in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AttentionLm:
    """`layers` of rotary grouped-query attention with residuals between an embedding and a head."""

    vocab: int = 40
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    max_tokens: int = 48
    layers: int = 2
    seed: int = 0
    weights: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim

        def draw(*shape: int) -> Floats:
            return rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)

        self.weights["embedding"] = draw(self.vocab, width) * np.float32(5)
        self.weights["head"] = draw(width, self.vocab) * np.float32(3)
        for layer in range(self.layers):
            for name, columns in (("q", width), ("k", kv_width), ("v", kv_width), ("o", width)):
                self.weights[f"{layer}.{name}"] = draw(width, columns) * np.float32(1.5)
        half = self.head_dim // 2
        angles = np.outer(np.arange(self.max_tokens), 100.0 ** -(np.arange(half) / half))
        self.weights["cos"] = np.cos(angles).astype(np.float32)
        self.weights["sin"] = np.sin(angles).astype(np.float32)

    def logits(self, ids: npt.NDArray[np.int64]) -> Floats:
        """float32 [tokens, vocab], from the whole sequence at once and without a cache."""
        w, tokens = self.weights, len(ids)
        hidden = w["embedding"][ids]
        causal = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        for layer in range(self.layers):
            q = self._rotate((hidden @ w[f"{layer}.q"]).reshape(tokens, self.heads, self.head_dim))
            k = self._rotate((hidden @ w[f"{layer}.k"]).reshape(tokens, self.kv_heads, self.head_dim))
            v = (hidden @ w[f"{layer}.v"]).reshape(tokens, self.kv_heads, self.head_dim)
            k, v = (np.repeat(x, self.heads // self.kv_heads, axis=1) for x in (k, v))
            scores = np.einsum("thd,shd->hts", q, k) * np.float32(self.head_dim**-0.5) + causal
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v)
            hidden = hidden + mixed.reshape(tokens, -1) @ w[f"{layer}.o"]
        result: Floats = (hidden @ w["head"]).astype(np.float32)
        return result

    def _rotate(self, x: Floats) -> Floats:
        cos, sin = (self.weights[name][: len(x), None, :] for name in ("cos", "sin"))
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate((first * cos - second * sin, first * sin + second * cos), axis=-1)

    def model(self) -> onnx.ModelProto:
        """The graph."""
        nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["hidden.0"])]
        cache: list[str | int | None] = ["batch", self.kv_heads, self.max_tokens, self.head_dim]
        inputs: list[Any] = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
            helper.make_tensor_value_info("logits_from", TensorProto.INT64, [1]),
        ]
        outputs: list[Any] = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "kept", self.vocab])]
        for i in range(self.layers):
            nodes += [helper.make_node("MatMul", [f"hidden.{i}", f"{i}.{x}"], [f"{x}.{i}"]) for x in "qkv"]
            past, present = ([f"{when}.{i}.{x}" for x in ("key", "value")] for when in ("past", "present"))
            nodes.append(
                helper.make_node(
                    "GroupQueryAttention",
                    [*(f"{x}.{i}" for x in "qkv"), *past, "seqlens_k", "total_sequence_length", "cos", "sin"],
                    [f"mixed.{i}", *present],
                    domain="com.microsoft",
                    num_heads=self.heads,
                    kv_num_heads=self.kv_heads,
                    do_rotary=1,
                )
            )
            nodes.append(helper.make_node("MatMul", [f"mixed.{i}", f"{i}.o"], [f"delta.{i}"]))
            nodes.append(helper.make_node("Add", [f"hidden.{i}", f"delta.{i}"], [f"hidden.{i + 1}"]))
            inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past]
            outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in present]
        last = f"hidden.{self.layers}"
        nodes.append(helper.make_node("Slice", [last, "logits_from", "end", "axis"], ["kept"]))
        nodes.append(helper.make_node("MatMul", ["kept", "head"], ["logits"]))
        constants: dict[str, npt.NDArray[Any]] = dict(self.weights)
        constants |= {"end": np.array([2**31], np.int64), "axis": np.array([1], np.int64)}
        weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "decoder", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
