"""Products whose two halves are joined right away, as a feed-forward block's gate and up are: one kernel does both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptc.passes.device.atoms import Atom, Gemm, Line, Operand
from adaptc.runtime.bundle.gpu_steps.device_step import Pair

_TILE = 8  # results of each half that lie together


def paired(order: Sequence[Atom]) -> list[Atom]:
    """Atoms in which `f(a) * b` of a product's halves a and b belongs to the product.

    Args:
        order: Each atom after those that it reads; those that are rewritten are changed in place.
    """
    readers: dict[Atom, list[Atom]] = {}
    for atom in order:
        for arg in atom.args:
            if isinstance(arg, Atom):
                readers.setdefault(arg, []).append(atom)
    found: dict[Atom, Gemm] = {}
    gone: set[Atom] = set()
    for atom in order:
        match = _match(atom, readers)
        if match is not None:
            gemm, pair, lines = match
            [weight] = gemm.weights
            gemm.weights = (replace(weight, stride=weight.results // 2, pair=pair),)
            gemm.width = weight.results // 2
            found[atom] = gemm
            gone |= {atom, *lines}
    for atom in order:
        atom.args = tuple(found.get(arg, arg) if isinstance(arg, Atom) else arg for arg in atom.args)
    return [atom for atom in order if atom not in gone]


def _match(atom: Atom, readers: Mapping[Atom, Sequence[Atom]]) -> tuple[Gemm, Pair, set[Atom]] | None:
    """The product that a line joins the halves of, by what, and the lines between; None for any other atom."""
    if not isinstance(atom, Line) or atom.op != "mul" or len(atom.args) != 2:
        return None
    for first, second in (atom.args, atom.args[::-1]):
        activation = _activation(first)
        if activation is None:
            continue
        pair, source, lines = activation
        gemm = _halves(source, second)
        lines |= {source, second} if isinstance(second, Atom) else set()
        inner = {*lines, atom}
        if gemm is None or any(not isinstance(each, Gemm) for each in readers.get(atom, ())):
            continue
        if all(reader in inner for line in (*lines, gemm) for reader in readers[line]) and _same_place(gemm, inner):
            return gemm, pair, lines
    return None


def _activation(atom: Operand) -> tuple[Pair, Atom, set[Atom]] | None:
    """What a line is a function of, and which: x · sigmoid(x), or a gelu."""
    if not isinstance(atom, Line):
        return None
    if atom.op in ("gelu", "gelu_tanh") and isinstance(atom.args[0], Atom):
        return atom.op, atom.args[0], {atom}
    if atom.op != "mul":
        return None
    for source, other in (atom.args, atom.args[::-1]):
        if isinstance(other, Line) and other.op == "sigmoid" and other.args == (source,) and isinstance(source, Atom):
            return "silu", source, {atom, other}
    return None


def _halves(first: Operand, second: Operand) -> Gemm | None:
    """The product whose halves two lines are; None if they are not."""
    if not (isinstance(first, Line) and isinstance(second, Line) and first.op == second.op == "slice"):
        return None
    [gemm], width = first.args, first.width
    fits = isinstance(gemm, Gemm) and second.args == (gemm,) and len(gemm.weights) == 1 and gemm.width == 2 * width
    places = first.numbers == (0.0,) and second.numbers == (float(width),) and second.width == width
    if not fits or not places or width % _TILE:
        return None
    assert isinstance(gemm, Gemm)
    return None if gemm.weights[0].bias else gemm


def _same_place(gemm: Gemm, lines: set[Atom]) -> bool:
    return all(line.region == gemm.region and line.head == gemm.head for line in lines)
