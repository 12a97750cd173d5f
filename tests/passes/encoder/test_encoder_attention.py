"""encoder_attention: the kernel over flat heads gives what transformers gives, with padding, neighbours and RoPE."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from adaptc.capture.encoder import capture_encoder
from adaptc.families.sentences import MEAN, POOLING_MODES, PoolingMode, Sentences
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.encoder.encoder_attention import EncoderAttention
from adaptc.passes.lower.lower import Lower
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.encoding.session import padded
from adaptc.runtime.encoding.texts import Row
from tests.close import ENGINE, assert_close
from tests.models import encoders


@cache
def model(family: str) -> Any:
    """A tiny encoder as transformers runs it."""
    model_type, own = encoders.FAMILIES[family]
    config = transformers.CONFIG_MAPPING[model_type](**(encoders.COMMON | own))
    return encoders.random_model(transformers.AutoModel, config)


def program(family: str, sentences: Sentences = MEAN) -> Program:
    """The family's program after `lower`."""
    built = model(family)
    graph = capture_encoder(built.config, dict(built.named_parameters()), sentences)
    return Pipeline((Lower(),)).run(Program({"e": graph}, (Run("e"),)))


def rows() -> tuple[dict[str, Any], list[list[int]]]:
    """Texts of several lengths as one batch with padding, and each by itself."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, 20, length).tolist() for length in (17, 3, 1, 29)]
    whole = padded([Row(ids, [0] * len(ids)) for ids in texts], 0)
    return whole, texts


def run(graph: OnnxGraph, feeds: dict[str, Any]) -> npt.NDArray[np.float32]:
    names = [value.name for value in graph.model.graph.inputs]
    return graph.run({name: feeds[name] for name in names if name})["embedding"].astype(np.float32)


def states(family: str, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(family)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return found


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_kernel_gives_what_transformers_gives(family: str) -> None:
    """Before and after the pass; of ModernBERT with windows of 3 to either side, and RoPE."""
    before = program(family)
    after = Pipeline((EncoderAttention(),)).run(before)
    feeds, texts = rows()
    expected = np.stack([states(family, ids).mean(0).numpy() for ids in texts])
    assert_close(run(before.graph("e", OnnxGraph), feeds), expected, **ENGINE)
    assert_close(run(after.graph("e", OnnxGraph), feeds), expected, **ENGINE)
    kinds = [node.op_type for node in after.graph("e", OnnxGraph).model.graph]
    assert kinds.count("MultiHeadAttention") == model(family).config.num_hidden_layers
    assert "EncoderAttention" not in kinds


def test_golden(golden: Callable[[str, str], None]) -> None:
    """BERT alone: transformers computes ModernBERT's angles in the order of a set, which differs by process."""
    after = Pipeline((EncoderAttention(),)).run(program("bert"))
    golden("encoder_attention/bert", after.graph("e", OnnxGraph).text())


def test_a_program_without_encoders_is_itself() -> None:
    from tests.models import tiny

    before = tiny.lowered("llama")
    assert EncoderAttention().apply(before) is before


def test_padding_is_hidden_and_not_only_left_out_of_the_mean() -> None:
    """A control: without the mask the other texts' lengths would change a vector."""
    graph = Pipeline((EncoderAttention(),)).run(program("bert")).graph("e", OnnxGraph)
    feeds, texts = rows()
    blind = dict(feeds, attention_mask=np.ones_like(feeds["attention_mask"]))
    first = np.abs(run(graph, feeds) - run(graph, blind))
    assert first[0].max() > 0.01
    assert first[3].max() < 1e-5  # the longest has no padding
    assert texts[3] == feeds["input_ids"][3].tolist()


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_each_way_of_pooling(mode: PoolingMode) -> None:
    """By the definition, of states that transformers computes for each text alone."""
    graph = program("bert", Sentences((mode,), normalize=mode == "max")).graph("e", OnnxGraph)
    feeds, texts = rows()
    expected = []
    for ids in texts:
        one = states("bert", ids).numpy()
        ranks = np.arange(1, len(ids) + 1)[:, None]
        vector = {
            "cls": one[0],
            "max": one.max(0),
            "mean": one.mean(0),
            "mean_sqrt_len_tokens": one.sum(0) / np.sqrt(len(ids)),
            "weightedmean": (one * ranks).sum(0) / ranks.sum(),
            "lasttoken": one[-1],
        }[mode]
        expected.append(vector / np.linalg.norm(vector) if mode == "max" else vector)
    assert_close(run(graph, feeds), np.stack(expected).astype(np.float32), **ENGINE)
