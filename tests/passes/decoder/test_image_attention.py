"""Attention in which an image is seen whole: every form of the graph says what transformers says with its mask."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.operators import attention  # noqa: F401  (declares adaptc::image_attention)
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.decoder.quantize_cache import QuantizeCache
from adaptc.passes.drop_modality.drop_modality import DropModality
from adaptc.passes.lower.lower import Lower
from tests.close import ENGINE, FLOAT32, assert_close
from tests.models import tiny, vlm

PARTS: dict[str, tuple[str, ...]] = {"image": ("pixel_values",), "text": ("input_ids",)}
Ids = npt.NDArray[np.int64]


@cache
def lowered(keep: Any = "all") -> Program:
    drop = DropModality(modalities=PARTS, stand_in="empty", keep=keep)
    return Pipeline((drop, Lower())).run(vlm.program("gemma3"))


@cache
def cached(*more: Any) -> OnnxGraph:
    return Pipeline((KvCache(max_tokens=64), LogitsFrom(), *more)).run(lowered()).graph("lm", OnnxGraph)


def prompt(words: int = 2) -> tuple[list[int], Ids]:
    """Two images of 4 places, the second right after a first part of as many words, and where they go."""
    token = vlm.model("gemma3", num_hidden_layers=3).config.image_token_id
    ids = [5, 6, 7, *[token] * 4, *range(20, 20 + words), *[token] * 4, 8, 9, 10]
    return ids, np.flatnonzero(np.array(ids) == token)


def features(seed: int = 0) -> npt.NDArray[np.float32]:
    pixels = {"pixel_values": vlm.two_images("gemma3", seed)["pixel_values"]}
    found = lowered().graphs["lm.encode.image"].run(pixels)["image_features"]
    return found.reshape(8, -1).astype(np.float32)


def read(graph: OnnxGraph, pieces: list[int]) -> npt.NDArray[np.float32]:
    """Logits of the prompt, read in pieces that end where it is said: float32 [tokens, vocab]."""
    ids, places = prompt()
    past, start, found = tiny.empty_cache(graph, 1), 0, []
    for end in pieces:
        here = (places >= start) & (places < end)
        feeds = {
            "input_ids": np.array([ids[start:end]]),
            "seqlens_k": np.array([end - 1], np.int32),
            "total_sequence_length": np.array(end, np.int32),
            "logits_from": np.array([0]),
            "image_features": features()[here],
            "image_places": places[here] - start,
            **past,
        }
        outputs = graph.run(feeds)
        past = {name: outputs[name.replace("past", "present")] for name in past}
        found.append(outputs["logits"][0])
        start = end
    return np.concatenate(found)


def expected() -> npt.NDArray[np.float32]:
    return vlm.logits(vlm.model("gemma3", num_hidden_layers=3), prompt()[0], vlm.two_images("gemma3"))


def test_golden(golden: Any) -> None:
    """One layer: a mask that all layers share, and an If behind the kernel."""
    program = vlm.program("gemma3", 1)
    drop = DropModality(modalities=PARTS, stand_in="empty")
    golden("drop_modality/gemma3", str(drop.apply(program)))
    golden("drop_modality/gemma3-text", str(DropModality(PARTS, stand_in="empty", keep=(("text",),)).apply(program)))
    made = Pipeline((drop, Lower(), KvCache(max_tokens=64))).run(program)
    golden("kv_cache/gemma3-images", str(made.graph("lm", OnnxGraph).text()))


@pytest.mark.parametrize("pieces", [[16], [7, 16], [3, 7, 8, 13, 14, 16], [2, 9, 16]])
def test_pieces_that_cut_no_image_equal_eager(pieces: list[int]) -> None:
    """The window of 6 positions is shorter than the prompt, and than an image with the words before it."""
    assert len(prompt()[0]) == 16
    assert_close(read(cached(), pieces), expected(), **ENGINE)


def test_a_piece_that_cuts_an_image_does_not() -> None:
    """A negative control: what a decoder is never asked to do."""
    assert np.abs(read(cached(), [5, 16]) - expected()).max() > 0.01


def test_a_cache_in_half_precision_is_read_too() -> None:
    found = read(cached(QuantizeCache("fp16")), [9, 16])
    error = np.abs(found - expected()).max() / np.abs(expected()).max()
    assert 0 < error < 4e-3


def test_before_a_cache_it_is_one_operator_with_a_definition() -> None:
    ids, places = prompt()
    graph = lowered().graph("lm", OnnxGraph)
    positions = np.arange(len(ids))[None]
    given: dict[str, Any] = {"input_ids": np.array([ids]), "position_ids": positions}
    found = graph.run({**given, "image_features": features(), "image_places": places})["logits"][0]
    assert_close(found, expected(), **ENGINE)
    none: dict[str, Any] = {"image_features": features()[:0], "image_places": places[:0]}
    alone = vlm.logits(vlm.model("gemma3", num_hidden_layers=3), ids)
    assert_close(graph.run({**given, **none})["logits"][0], alone, **ENGINE)


def test_without_images_nothing_of_it_is_left() -> None:
    graph = Pipeline((KvCache(max_tokens=64),)).run(lowered((("text",),))).graph("lm", OnnxGraph)
    kinds = {node.op_type for node in graph.model.graph}
    assert "GroupQueryAttention" in kinds
    assert not kinds & {"If", "ImageAttention"}
    assert not {value.name for value in graph.model.graph.inputs} & {"image_places", "image_features"}


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (3, 0.0), (0, 2.0), (3, 2.0)])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_operator_by_its_definition(window: int, softcap: float, rows: int) -> None:
    """Token by token in plain Python: rows of a batch have images of their own, and images in a row are one."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(rows, heads, 9, 4, generator=random) for heads in (4, 2, 2))
    images = [[(1, 4), (5, 7)], [(0, 2), (6, 9)]][:rows]
    places = torch.tensor(
        [row * 9 + at for row, its in enumerate(images) for first, end in its for at in range(first, end)]
    )
    found = torch.ops.adaptc.image_attention(query, key, value, places, 0.5, window, softcap)
    for row in range(rows):
        for token in range(9):
            end = next((end for first, end in images[row] if first <= token < end), token + 1)
            first = max(0, token - window + 1) if window else 0
            for head in range(4):
                scores = key[row, head // 2, first:end] @ query[row, head, token] * 0.5
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                right = scores.softmax(0) @ value[row, head // 2, first:end]
                assert_close(found[row, token, head].numpy(), right.numpy(), **FLOAT32)


def test_gradients_go_through_it() -> None:
    """Gates are trained through attention; central differences say what the gradient is."""
    random = torch.Generator().manual_seed(1)
    inputs = [torch.randn(1, 2, 5, 4, generator=random, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    places = torch.tensor([1, 2, 3])

    def attended(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.adaptc.image_attention(*tensors, places, 0.5, 0, 2.0)
        return result

    # The softmax is in float32, so steps are large and tolerances wide.
    assert torch.autograd.gradcheck(attended, inputs, eps=1e-2, atol=1e-2, rtol=1e-2)
