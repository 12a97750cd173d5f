"""source_codes: products over a source's own codes are those over the matrix that these stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import fixed
from adaptc.ir.program import Program
from adaptc.ir.source_grid import SourceGrid, SourceMatrix
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.quantize.source_blocks import dense, source_blocks
from adaptc.passes.quantize.source_codes import SourceCodes
from tests.close import ENGINE, assert_close
from tests.models import tiny

IDS = tiny.feeds(1, 12, seed=3)["input_ids"]
MIDDLE = object()


def grid(
    rows: int,
    columns: int,
    *,
    levels: int = 16,
    group: int = 16,
    zero: Any = MIDDLE,
    offsets: bool = False,
    order: bool = False,
    seed: int = 0,
) -> SourceGrid:
    """A random grid; `zero` is the zero point of all groups, the middle code by default, or None for random ones."""
    draw = np.random.default_rng(seed)
    groups = -(-columns // group)
    scales = (draw.random((rows, groups), np.float32) + np.float32(0.5)) * np.float32(0.6 / levels)
    zeros = draw.integers(0, levels, (rows, groups)) if zero is None else np.full((1, 1), zero)
    if zero is MIDDLE:
        zeros = np.full((1, 1), levels // 2)
    return SourceGrid(
        draw.integers(0, levels, (rows, columns), dtype=np.uint8),
        levels,
        group,
        scales,
        zeros.astype(np.int16),
        -scales * draw.uniform(0, levels - 1, (rows, groups)).astype(np.float32) if offsets else None,
        draw.permutation(columns) if order else None,
    )


EXACT: dict[str, tuple[dict[str, Any], str]] = {
    "Q4_0": ({"group": 32}, "int4, blocks of 32"),
    "Q8_0": ({"group": 32, "levels": 256}, "int8, blocks of 32"),
    "Q6_K": ({"levels": 64}, "int8, blocks of 16"),
    "Q3_K": ({"levels": 8}, "int4, blocks of 16"),
    "256 in a group": ({"group": 256, "levels": 4, "zero": 1}, "int4, blocks of 256"),
    "96 in a group": ({"group": 96}, "int4, blocks of 32"),
    "zero points": ({"zero": None}, "int4, blocks of 16, zero points"),
    "one zero point, off the middle": ({"zero": 3}, "int4, blocks of 16, zero points"),
    "few codes off the middle": ({"levels": 4, "zero": 0}, "int4, blocks of 16"),
    "a zero point beyond the codes": ({"zero": 16}, "int8, blocks of 16"),
    "zero points of 8 bits": ({"levels": 256, "zero": None, "group": 64}, "int8, blocks of 64, zero points"),
    "another order": ({"order": True, "zero": None}, "int4, blocks of 16, zero points, columns reordered"),
    "a scale for a row": ({"group": 512, "levels": 256}, "int8, blocks of 128"),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_grid_that_kernels_have_is_kept_number_by_number(name: str) -> None:
    options, form = EXACT[name]
    given = grid(24, 512, **options)
    held = source_blocks(given)
    assert held is not None
    assert held.exact
    assert held.form == form
    assert np.array_equal(dense(held), given.dense())


@pytest.mark.parametrize("columns", [48, 40, 7])
def test_a_row_of_any_length_is_cut_into_blocks(columns: int) -> None:
    given = grid(24, columns, group=columns, zero=None)
    held = source_blocks(given)
    assert held is not None
    assert np.array_equal(dense(held), given.dense())


@pytest.mark.parametrize("levels", [4, 16, 32])
def test_offsets_are_kept_but_for_the_rounding_of_their_columns(levels: int) -> None:
    given = grid(24, 512, levels=levels, zero=0, group=32, offsets=True)
    held = source_blocks(given)
    assert held is not None
    assert held.means
    assert not held.exact
    error = np.linalg.norm(dense(held) - given.dense()) / np.linalg.norm(given.dense())
    assert held.error[0] / held.error[1] == pytest.approx(error)
    spread = np.linalg.norm(given.scales) / np.linalg.norm(given.dense()) * 32**0.5
    assert 0 < error < 0.05 * spread  # a plain rounding to these scales would be off by 1 / 12 ** 0.5 of them


def test_whole_offsets_are_zero_points() -> None:
    """A minimum of whole scales, as files have that were quantized symmetrically before."""
    given = grid(24, 64, zero=0, group=32, offsets=True)
    assert given.offsets is not None
    whole = replace(given, offsets=-np.float32(8) * given.scales)
    held = source_blocks(whole)
    assert held is not None
    assert held.exact
    assert source_blocks(whole, offset_columns=False) is None


@pytest.mark.parametrize("options", [{"group": 24}, {"zero": 300, "levels": 256}, {"zero": -200}])
def test_a_grid_that_no_kernel_has_is_left(options: dict[str, Any]) -> None:
    assert source_blocks(grid(24, 96, **options)) is None


# On whole models

FORMS: Mapping[str, dict[str, Any]] = {
    "q_proj": {},
    "k_proj": {},
    "v_proj": {"levels": 64},
    "o_proj": {"zero": None},
    "gate_proj": {"zero": 0, "offsets": True},
    "up_proj": {"zero": 0, "offsets": True, "seed": 1},
    "down_proj": {"order": True},
    "lm_head": {"levels": 256},
    "embed_tokens": {"levels": 256},
}


@cache
def program(family: str = "llama-tied") -> Program:
    """The family's program, whose source has a form of its own for each kind of matrix, and one layer in floats."""
    graph = tiny.onnx(tiny.cached(family)).fork()
    held = {}
    for index, (name, value) in enumerate(sorted(graph.model.graph.initializers.items())):
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if value.shape is None or len(value.shape) != 2 or kind not in FORMS:
            continue
        rows, columns = fixed(value)
        stored = None if ".layers.1." in name else grid(rows, columns, **{"seed": index, **FORMS[kind]})
        held[name] = SourceMatrix(rows, lambda stored=stored: stored)  # type: ignore[misc]
        if stored is not None:
            value.const_value = ir.tensor(stored.dense(), name=name)
    assert len(held) > 20
    fused = Pipeline((FuseProjections(),)).run(tiny.cached(family).with_graph("lm", graph))
    return replace(fused, checkpoint={"lm": held})


def eager(family: str, given: Program, *, floats: bool = True) -> np.ndarray:
    """transformers' logits with the matrices that a program's source has."""
    import copy

    model = copy.deepcopy(tiny.model(family))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, matrix in given.checkpoint["lm"].items():
            stored = matrix.read()
            if stored is not None:
                parameters[name].copy_(torch.from_numpy(stored.dense()))
            elif not floats:
                raise AssertionError(name)
        logits: np.ndarray = model(torch.from_numpy(IDS), use_cache=False).logits.numpy()
    return logits


def exact(given: Program) -> np.ndarray:
    """A program's logits, products computed in float32."""
    graph = tiny.onnx(given).fork()
    for node in graph.model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    return tiny.step(graph, IDS)[0]


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("source_codes/llama-tied", str(SourceCodes().apply(program())))


def test_golden_without_prepared_inputs(golden: Callable[[str, str], None]) -> None:
    text = str(SourceCodes(prepared_inputs=False).apply(program()))
    golden("source_codes/llama-tied-plain", text)
    assert "AveragePool" not in text


@pytest.mark.parametrize("family", ["llama-tied", "llama", "qwen2"])
def test_logits_are_those_of_the_matrices(family: str) -> None:
    """With offsets and floats left out, whose rounding is tested by itself."""
    given = program(family)
    kinds = ("layers.0", "layers.2", "lm_head", "embed_tokens")
    held = {n: m for n, m in given.checkpoint["lm"].items() if any(kind in n for kind in kinds)}
    plain = {n: SourceMatrix(m.rows, lambda m=m: _plain(m.read())) for n, m in held.items()}  # type: ignore[misc]
    given = replace(given, checkpoint={"lm": plain})
    assert_close(exact(Pipeline((SourceCodes(),)).run(given)), eager(family, given, floats=False), **ENGINE)


def _plain(stored: SourceGrid | None) -> SourceGrid | None:
    """A grid with offsets that are whole scales."""
    if stored is None or stored.offsets is None:
        return stored
    return replace(stored, offsets=-np.float32(5) * stored.scales)


@pytest.mark.parametrize("prepared", [True, False])
def test_logits_are_near_with_offsets_and_floats(prepared: bool) -> None:
    given = program("llama")
    found = exact(Pipeline((SourceCodes(prepared_inputs=prepared),)).run(given))
    expected = eager("llama", given)
    assert 1e-4 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_was_stored_is_told_by_kind() -> None:
    told = SourceCodes().apply(program("llama")).source_weights
    assert told["self_attn.q_proj"].tensors == 3
    assert told["self_attn.q_proj"].exact == 2
    assert told["self_attn.q_proj"].form == "int4, blocks of 16; int8, blocks of 16, zero points"
    assert 0 < told["self_attn.q_proj"].error < 0.01
    assert told["mlp.gate_proj"].exact == 0
    assert told["lm_head"] == replace(told["lm_head"], tensors=1, exact=1, error=0.0)


def test_what_a_source_does_not_hold_is_left_for_quantize() -> None:
    given = program("llama")
    held = {name: matrix for name, matrix in given.checkpoint["lm"].items() if "mlp" in name}
    text = str(SourceCodes().apply(replace(given, checkpoint={"lm": held})))
    assert "qkv_proj.weight.codes" not in text
    assert "qkv_proj.weight" in text
    assert "gate_up_proj.weight.codes" in text
    left = str(Pipeline((SourceCodes(), Quantize("int8", 16))).run(replace(given, checkpoint={"lm": held})))
    assert "Transpose" not in left


def test_input_is_untouched() -> None:
    given = program()
    before = str(given)
    assert SourceCodes().apply(given) is not given
    assert str(given) == before


def test_no_match_returns_the_same_program() -> None:
    given = tiny.cached("llama")
    assert SourceCodes().apply(given) is given
    done = Pipeline((SourceCodes(),)).run(program("llama"))
    assert SourceCodes().apply(done) is done


def test_refuses_scales_that_are_not_finite() -> None:
    given = program("llama")
    name = "model.layers.0.mlp.down_proj.weight"
    bad = grid(32, 64)
    bad.scales[3, 1] = np.inf
    held = {**given.checkpoint["lm"], name: SourceMatrix(32, lambda: bad)}
    with pytest.raises(PassError, match=rf"{name}: scales are not finite; the file is damaged"):
        SourceCodes().apply(replace(given, checkpoint={"lm": held}))
