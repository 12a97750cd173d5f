from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import fixed
from adaptc.passes import Pipeline
from adaptc.passes.decoder.kv_cache import KvCache
from tests.close import ENGINE, assert_close
from tests.models import tiny


@pytest.mark.parametrize("family", ["llama", "llama4"])
def test_golden(family: str, golden: Callable[[str, str], None]) -> None:
    golden(f"kv_cache/{family}", str(Pipeline((KvCache(max_tokens=64),)).run(tiny.lowered(family))))


def test_a_chunk_that_holds_all_positions_costs_nothing() -> None:
    """Whether positions of a chunk are as many as a text's: then the kernel alone is causal attention."""
    chunked = [tiny.onnx(tiny.cached("llama4", positions)).text() for positions in (5, 6)]
    assert ["Equal" in text for text in chunked] == [False, True]
    feeds = tiny.feeds(2, 5)
    logits, _ = tiny.step(tiny.onnx(tiny.cached("llama4", 5)), feeds["input_ids"])
    assert_close(logits, tiny.eager("llama4", feeds), **ENGINE)


def test_the_comparison_sees_a_chunk_of_another_length() -> None:
    """A negative control: the last token of 11 is the first of its chunk of 5, and sees others in one of 6."""
    other = tiny.random_model("llama4_text", {**tiny.COMMON, **tiny.LLAMA4, "attention_chunk_size": 6})
    feeds = tiny.feeds(2, 11)
    with torch.no_grad():
        wrong = other(torch.from_numpy(feeds["input_ids"]), use_cache=False).logits.numpy()
    logits, _ = tiny.step(tiny.onnx(tiny.cached("llama4")), feeds["input_ids"])
    assert_close(logits, tiny.eager("llama4", feeds), **ENGINE)
    assert abs(logits[:, -1] - wrong[:, -1]).max() > 0.05


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "llama4"])
def test_equals_eager(family: str) -> None:
    """A prompt in one step, then tokens one by one, of any sizes; test_every_pass.py has every family."""
    graph = tiny.onnx(tiny.cached(family))

    @settings(max_examples=4, deadline=None)
    @given(batch=st.integers(1, 3), prompt=st.integers(1, 20), steps=st.integers(1, 4), seed=st.integers(0, 2**20))
    def check(batch: int, prompt: int, steps: int, seed: int) -> None:
        feeds = tiny.feeds(batch, prompt + steps, seed)
        ids, expected = feeds["input_ids"], tiny.eager(family, feeds)
        logits, past = tiny.step(graph, ids[:, :prompt])
        assert_close(logits, expected[:, :prompt], **ENGINE)
        for at in range(prompt, prompt + steps):
            logits, past = tiny.step(graph, ids[:, at : at + 1], past, before=at)
            assert_close(logits[:, 0], expected[:, at], **ENGINE)

    check()


def test_chunks_equal_the_whole() -> None:
    feeds = tiny.feeds(1, 20)
    ids, expected = feeds["input_ids"], tiny.eager("llama", feeds)
    _, past = tiny.step(tiny.onnx(tiny.cached("llama")), ids[:, :7])
    logits, _ = tiny.step(tiny.onnx(tiny.cached("llama")), ids[:, 7:], past, before=7)
    assert_close(logits, expected[:, 7:], **ENGINE)


def test_input_is_untouched_and_weights_are_shared() -> None:
    program = tiny.lowered("llama")
    before = str(program)
    after = KvCache(max_tokens=64).apply(program)
    assert str(program) == before
    old, new = (tiny.onnx(p).model.graph.initializers for p in (program, after))
    assert all(new[name].const_value is value.const_value for name, value in old.items() if "inv_freq" not in name)


def test_no_match_returns_the_same_program() -> None:
    program = tiny.cached("llama")
    assert KvCache().apply(program) is program


def test_refuses_attention_without_a_shared_rotary_embedding() -> None:
    program = tiny.lowered("llama")
    graph = tiny.onnx(program).fork()
    rotary = next(n for n in graph.model.graph if n.op_type == "RotaryEmbedding")
    assert rotary.inputs[0] is not None
    rotary.outputs[0].replace_all_uses_with(rotary.inputs[0])
    with pytest.raises(
        PassError,
        match=r"^pass 'kv_cache' \(after lower\): model\.layers\.0\.self_attn: query and key must share one rotary "
        r"embedding, and value have none$",
    ):
        Pipeline((KvCache(),)).run(program.with_graph("lm", graph))


def test_options_set_the_cache_size() -> None:
    graph = tiny.onnx(Pipeline((KvCache(max_tokens=24),)).run(tiny.lowered("llama"))).model.graph
    past = next(value for value in graph.inputs if value.name == "past.0.key")
    assert list(past.shape or ())[1:] == [2, 24, 16]
    assert fixed(graph.initializers["rope.0.cos"]) == (24, 8)


def test_each_kind_of_layer_has_its_own_rotary_tables() -> None:
    graph = tiny.onnx(tiny.cached("gemma3")).model.graph
    assert sorted(name for name in graph.initializers if name.startswith("rope.")) == [
        "rope.0.cos",
        "rope.0.sin",
        "rope.1.cos",
        "rope.1.sin",
    ]
    windows = [n.attributes.get_int("local_window_size", 0) for n in graph if n.op_type == "GroupQueryAttention"]
    assert windows == [5, 5, 5, 5, 5, -1, 5]
