"""Whether a row program (`RowKernel`) reads what is there: a bundle is data, and may come from anywhere."""

from __future__ import annotations

import math

from adaptc.runtime.bundle.gpu_steps.device_step import RowKernel, RowLine
from adaptc.runtime.errors import BundleError

MOST_TERMS = 4096
"""Terms that the expression of a line may have when earlier lines are written out in it; models have some tens."""

_ARGS = {"number": 0, "input": 1, "weight": 1, "slice": 1, "tanh": 1, "sigmoid": 1, "gelu": 1, "gelu_tanh": 1}
_NUMBERS = {"number": 1, "slice": 1, "rms_norm": 2}
_SUMS = ("rms_norm", "dot")


def check_row_kernel(name: str, kernel: RowKernel) -> None:
    """Refuse a program that would read what is not there, or whose text would have no end.

    Args:
        name: Its name, for messages.
        kernel: The program.

    Raises:
        BundleError: it is not well formed.
    """
    terms: list[int] = []
    for index, line in enumerate(kernel.lines):
        if not _is_well_formed(kernel, index):
            raise BundleError(f"{name}: line {index} ({line.op}) is not well formed; compile again")
        if not _fits(kernel, line):
            widths = " and ".join(str(width) for width in _arg_widths(kernel, line))
            raise BundleError(f"{name}: line {index} ({line.op}): widths {line.width} and {widths}; compile again")
        terms.append(1 + sum(_read_terms(terms, arg, kernel) for arg in _lines(line)))
        if terms[-1] > MOST_TERMS:
            raise BundleError(f"{name}: line {index} has over {MOST_TERMS} terms; compile again")
    ends = [output.line for output in (*kernel.outputs, *kernel.inputs)]
    ends += [] if kernel.gate is None else [kernel.gate]
    if any(not 0 <= line < len(kernel.lines) for line in ends) or not kernel.outputs:
        raise BundleError(f"{name}: a line that is not there is read; compile again")
    for number, each in enumerate(kernel.inputs):
        line = kernel.lines[each.line]
        if line.op != "input" or line.args[0] != number:
            raise BundleError(f"{name}: line {each.line} is not input {number}; compile again")
    if kernel.gate is not None and kernel.lines[kernel.gate].width != 1:
        raise BundleError(f"{name}: a gate's logit has {kernel.lines[kernel.gate].width} numbers, not 1; compile again")


def _lines(line: RowLine) -> tuple[int, ...]:
    """Earlier lines that a line reads."""
    return () if line.op in ("input", "weight", "number") else line.args


def _read_terms(terms: list[int], arg: int, kernel: RowKernel) -> int:
    """Terms of a line where another reads it: sums are computed once, and stand there by name."""
    return 1 if kernel.lines[arg].op == "dot" else terms[arg]


def _is_well_formed(kernel: RowKernel, index: int) -> bool:
    """Whether a line has as many arguments and constants as it needs, and they are there."""
    line = kernel.lines[index]
    most = {"input": len(kernel.inputs), "weight": len(kernel.weights)}.get(line.op, index)
    counts = len(line.args) == _ARGS.get(line.op, 2) and len(line.numbers) == _NUMBERS.get(line.op, 0)
    return counts and line.width >= 1 and all(0 <= arg < most for arg in line.args)


def _arg_widths(kernel: RowKernel, line: RowLine) -> tuple[int, ...]:
    if line.op == "weight":
        return (kernel.weights[line.args[0]],)
    if line.op == "input":
        given = kernel.inputs[line.args[0]].line
        return (kernel.lines[given].width if 0 <= given < len(kernel.lines) else 0,)
    return tuple(kernel.lines[arg].width for arg in line.args)


def _fits(kernel: RowKernel, line: RowLine) -> bool:
    """Whether a line's width goes with what it reads."""
    widths = _arg_widths(kernel, line)
    match line.op:
        case "number":
            return line.width == 1 and math.isfinite(line.numbers[0])
        case "input" | "weight":
            return widths == (line.width,)
        case "slice":
            [start] = line.numbers
            return start == int(start) and 0 <= start <= widths[0] - line.width
        case "rms_norm":
            group = int(line.numbers[1])
            whole = group == line.numbers[1] and group >= 1 and line.width % group == 0
            return whole and widths == (line.width, group) and line.numbers[0] >= 0
        case "dot":
            return line.width == 1 and widths[0] == widths[1]
    return all(width in (1, line.width) for width in widths)
