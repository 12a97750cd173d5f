"""Random weights in the forms of others' quantizers, packed number by number as each form is defined.

Each maker gives the tensors that stand for a weight, by the ends of their names, and the weight itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Draw = np.random.Generator
Packed = tuple[dict[str, torch.Tensor], np.ndarray]
Maker = Callable[[Draw, int, int], Packed]

GROUP = 16


def words(codes: Sequence[int], bits: int) -> list[int]:
    """Codes in int32 words, the first in the lowest bits."""
    each = 32 // bits
    found = []
    for start in range(0, len(codes), each):
        word = sum(
            (int(code) % (1 << bits)) << (bits * place) for place, code in enumerate(codes[start : start + each])
        )
        found.append(word - (1 << 32) if word >= 1 << 31 else word)
    return found


def by_columns(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[n, m] -> [n · bits / 32, m]: a word has neighbours of one column."""
    return torch.tensor([words(list(column), bits) for column in codes.T], dtype=torch.int32).T.contiguous()


def by_rows(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[n, m] -> [n, m · bits / 32]: a word has neighbours of one row."""
    return torch.tensor([words(list(row), bits) for row in codes], dtype=torch.int32)


def scales_of(draw: Draw, rows: int, groups: int, spread: float) -> np.ndarray:
    """Scales that float16 and bfloat16 hold exactly."""
    return (draw.integers(64, 128, (rows, groups)) / 128 * spread).astype(np.float32)


def gptq(
    bits: int = 4, group: int = GROUP, *, first: bool = True, order: bool = False, symmetric: bool = False
) -> Maker:
    """qweight [in · bits / 32, out], scales [groups, out], qzeros [groups, out · bits / 32], first less 1."""

    def make(draw: Draw, rows: int, columns: int) -> Packed:
        size = columns if group == -1 else group
        groups = columns // size
        codes = draw.integers(0, 2**bits, (rows, columns))
        zeros = draw.integers(1, 2**bits, (rows, groups))
        if symmetric:
            zeros[:] = 2 ** (bits - 1)
        scales = scales_of(draw, rows, groups, 0.5 / 2**bits)
        places = np.arange(columns) // size
        if order:
            places = draw.permutation(places)
        dense = np.empty((rows, columns), np.float32)
        for column, place in enumerate(places):
            dense[:, column] = (codes[:, column] - zeros[:, place]) * scales[:, place]
        tensors = {
            "qweight": by_columns(codes.T, bits),
            "qzeros": by_rows(zeros.T - first, bits),
            "scales": torch.from_numpy(scales.T.copy()).half(),
            "g_idx": torch.tensor(places, dtype=torch.int32),
        }
        return tensors, dense

    return make


def awq(draw: Draw, rows: int, columns: int) -> Packed:
    """qweight [in, out / 8]: of eight outputs a word has 0, 2, 4, 6, 1, 3, 5, 7, from its lowest bits on."""
    groups = columns // GROUP
    codes, zeros = draw.integers(0, 16, (rows, columns)), draw.integers(0, 16, (rows, groups))
    scales = scales_of(draw, rows, groups, 2**-5)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers: np.ndarray) -> torch.Tensor:
        """[n, out] -> [n, out / 8]."""
        shuffled = numbers.reshape(len(numbers), -1, 8)[:, :, order].reshape(len(numbers), -1)
        return by_rows(shuffled, 4)

    dense = (codes - zeros.repeat(GROUP, 1)) * scales.repeat(GROUP, 1)
    tensors = {
        "qweight": packed(codes.T),
        "qzeros": packed(zeros.T),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }
    return tensors, dense.astype(np.float32)


def pack_quantized(bits: int = 4, group: int = GROUP, *, symmetric: bool = True, order: bool = False) -> Maker:
    """weight_packed [out, in · bits / 32] of numbers moved up by half the range, and zero points along the outputs."""

    def make(draw: Draw, rows: int, columns: int) -> Packed:
        half, size = 2 ** (bits - 1), columns if group == -1 else group
        groups = columns // size
        numbers = draw.integers(-half, half, (rows, columns))
        zeros = np.zeros((rows, groups), np.int64) if symmetric else draw.integers(-half, half, (rows, groups))
        scales = scales_of(draw, rows, groups, 0.5 / 2**bits)
        places = np.arange(columns) // size
        if order:
            places = draw.permutation(places)
        dense = (numbers - zeros[:, places]) * scales[:, places]
        tensors = {
            "weight_packed": by_rows(numbers + half, bits),
            "weight_scale": torch.from_numpy(scales).bfloat16(),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            tensors["weight_zero_point"] = by_columns(zeros + half, bits)
        if order:
            tensors["weight_g_idx"] = torch.tensor(places, dtype=torch.int32)
        return tensors, dense.astype(np.float32)

    return make


def int_quantized(shape: Callable[[int, int], tuple[int, ...]], *, symmetric: bool = True) -> Maker:
    """weight int8 [out, in]; `shape` is that of scales."""

    def make(draw: Draw, rows: int, columns: int) -> Packed:
        numbers, form = draw.integers(-128, 128, (rows, columns)), shape(rows, columns)
        scales = scales_of(draw, 1, int(np.prod(form)), 2**-9).reshape(form)
        zeros = draw.integers(-128, 128, form) * (not symmetric)
        spread = (each.repeat(columns // each.shape[-1], -1) for each in (zeros, scales))
        offset, factor = spread
        tensors = {
            "weight": torch.tensor(numbers, dtype=torch.int8),
            "weight_scale": torch.from_numpy(scales).bfloat16(),
        }
        if not symmetric:
            tensors["weight_zero_point"] = torch.tensor(zeros, dtype=torch.int8)
        return tensors, ((numbers - offset) * factor).astype(np.float32)

    return make


def float8(
    scale: str, shape: Callable[[int, int], tuple[int, ...]], block: tuple[int, int] | None = None, kind: Any = None
) -> Maker:
    """weight float8_e4m3fn [out, in], times the scale of its square, row or matrix."""

    def make(draw: Draw, rows: int, columns: int) -> Packed:
        weight = torch.from_numpy(draw.standard_normal((rows, columns))).to(torch.float8_e4m3fn)
        form = shape(rows, columns)
        scales = torch.from_numpy(2.0 ** draw.integers(-4, 0, form)).float()
        factors = scales.numpy().reshape(-1, 1)
        if block is not None:
            factors = scales.numpy()[np.arange(rows)[:, None] // block[0], np.arange(columns) // block[1]]
        return {"weight": weight, scale: scales.to(kind or torch.float32)}, weight.float().numpy() * factors

    return make


NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)  # fmt: skip


def nf4(*, nested: bool = False, storage: Any = torch.uint8) -> Maker:
    """Two codes of a table a byte, the first in the high half; a largest number for each 64, perhaps coded in turn."""

    def make(draw: Draw, rows: int, columns: int) -> Packed:
        size, outer = 64, 256
        codes = draw.integers(0, 16, rows * columns)
        blocks = rows * columns // size
        packed = torch.tensor([(a << 4) | b for a, b in codes.reshape(-1, 2)], dtype=torch.uint8)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": [rows, columns]}
        tensors = {"weight": packed.view(storage).reshape(-1, 1), "weight.quant_map": torch.tensor(NF4)}
        if nested:
            table = torch.linspace(-1, 1, 256)
            inner = draw.integers(0, 256, blocks)
            factors = draw.random(-(-blocks // outer)).astype(np.float32) * np.float32(0.1)
            state |= {"nested_blocksize": outer, "nested_offset": 0.25, "nested_dtype": "float32"}
            largest = np.array(
                [table[c] * factors[i // outer] + np.float32(0.25) for i, c in enumerate(inner)], np.float32
            )
            tensors |= {
                "weight.absmax": torch.tensor(inner, dtype=torch.uint8),
                "weight.nested_absmax": torch.from_numpy(factors),
                "weight.nested_quant_map": table,
            }
        else:
            largest = draw.random(blocks).astype(np.float32)
            tensors["weight.absmax"] = torch.from_numpy(largest)
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        )
        dense = np.array([np.float32(NF4[c]) * largest[i // size] for i, c in enumerate(codes)], np.float32)
        return tensors, dense.reshape(rows, columns)

    return make


def int8_rows(draw: Draw, rows: int, columns: int) -> Packed:
    """weight int8 [out, in]; SCB is each row's largest number, which 127 stands for."""
    numbers, largest = draw.integers(-127, 128, (rows, columns)), draw.random(rows).astype(np.float32)
    dense = numbers.astype(np.float32) * (largest / np.float32(127))[:, None]
    tensors = {
        "weight": torch.tensor(numbers, dtype=torch.int8),
        "SCB": torch.from_numpy(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, dense


@dataclass(frozen=True)
class Form:
    """A way to quantize a folder.

    Attributes:
        config: Its `quantization_config`.
        make: Packs a matrix.
        skipped: Modules that stay floats.
        exact: Whether its codes lie on a grid.
    """

    config: dict[str, Any]
    make: Maker
    skipped: tuple[str, ...] = ("lm_head",)
    exact: bool = True


def _gptq(bits: int = 4, group: int = GROUP, **options: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True, **options}


def _compressed(form: str, activations: Any = None, **weights: Any) -> dict[str, Any]:
    symmetric = {"symmetric": True, "dynamic": False, "observer": "minmax"}
    group = {"targets": ["Linear"], "weights": symmetric | weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _four(strategy: str, size: int | None, **more: Any) -> dict[str, Any]:
    return _compressed("pack-quantized", num_bits=4, type="int", strategy=strategy, group_size=size, **more)


_SQUARE = (16, 32)
_EIGHT = {"num_bits": 8, "type": "int", "strategy": "channel"}
_FLOAT = {"num_bits": 8, "type": "float"}
_BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}

FORMS = {
    "gptq": Form(_gptq(sym=False), gptq()),
    "gptq-sym": Form(_gptq(checkpoint_format="gptq"), gptq(symmetric=True)),
    "gptq-v2": Form(_gptq(checkpoint_format="gptq_v2"), gptq(first=False)),
    "gptq-order": Form(_gptq(desc_act=True), gptq(order=True)),
    "gptq-rows": Form(_gptq(group=-1, desc_act=True), gptq(group=-1)),
    "gptq-8": Form(_gptq(bits=8), gptq(bits=8)),
    "gptq-head": Form(_gptq(lm_head=True), gptq(), skipped=()),
    "awq": Form({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, awq),
    "pack": Form(_four("group", GROUP), pack_quantized()),
    "pack-zeros": Form(_four("group", GROUP, symmetric=False), pack_quantized(symmetric=False)),
    "pack-order": Form(_four("group", GROUP, actorder="group"), pack_quantized(order=True)),
    "pack-channel": Form(_four("channel", None), pack_quantized(group=-1)),
    "pack-8": Form(
        _compressed("pack-quantized", num_bits=8, type="int", strategy="group", group_size=32), pack_quantized(8, 32)
    ),
    "int8-channel": Form(_compressed("int-quantized", **_EIGHT), int_quantized(lambda rows, _: (rows, 1))),
    "int8-zeros": Form(
        _compressed("int-quantized", **_EIGHT, symmetric=False),
        int_quantized(lambda rows, _: (rows, 1), symmetric=False),
    ),
    "int8-tensor": Form(
        _compressed("int-quantized", num_bits=8, type="int", strategy="tensor"), int_quantized(lambda *_: (1,))
    ),
    "float8-channel": Form(
        _compressed("float-quantized", **_FLOAT, strategy="channel"),
        float8("weight_scale", lambda rows, _: (rows, 1)),
        exact=False,
    ),
    "float8-tensor": Form(
        _compressed("float-quantized", **_FLOAT, strategy="tensor"),
        float8("weight_scale", lambda *_: (1,)),
        exact=False,
    ),
    "float8-block": Form(
        _compressed("float-quantized", **_FLOAT, strategy="block", block_structure=list(_SQUARE)),
        float8("weight_scale", lambda rows, columns: (-(-rows // 16), -(-columns // 32)), _SQUARE),
        exact=False,
    ),
    "fp8-squares": Form(
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(_SQUARE), "activation_scheme": "dynamic"},
        float8("weight_scale_inv", lambda rows, columns: (-(-rows // 16), -(-columns // 32)), _SQUARE),
        exact=False,
    ),
    "fp8-uneven": Form(
        {"quant_method": "fp8", "weight_block_size": [24, 24], "activation_scheme": "dynamic"},
        float8(
            "weight_scale_inv",
            lambda rows, columns: (-(-rows // 24), -(-columns // 24)),
            (24, 24),
            torch.float8_e8m0fnu,
        ),
        exact=False,
    ),
    "nf4": Form(_BNB4, nf4(), exact=False),
    "nf4-nested": Form({**_BNB4, "bnb_4bit_use_double_quant": True}, nf4(nested=True), exact=False),
    "nf4-bfloat16": Form({**_BNB4, "bnb_4bit_quant_storage": "bfloat16"}, nf4(storage=torch.bfloat16), exact=False),
    "bnb-8": Form({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, int8_rows),
}


def quantize(folder: Path, form: Form, model: Any, seed: int = 0) -> Any:
    """Quantize the linear layers of a saved model's folder in place; `model` gets the weights that this makes.

    Args:
        folder: The folder of a saved model, with one file of weights.
        form: How.
        model: The same model, as transformers runs it.
        seed: Of the new weights.
    """
    draw = np.random.default_rng(seed)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name in form.skipped:
            continue
        packed, dense = form.make(draw, *module.weight.shape)
        tensors.pop(f"{name}.weight", None)
        tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in packed.items()}
        with torch.no_grad():
            module.weight = torch.nn.Parameter(torch.from_numpy(dense))
    save_file(tensors, path, {"format": "pt"})
    change(folder, quantization_config=form.config)
    return model


def change(folder: Path, **values: Any) -> None:
    """Change keys of a folder's config."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
