"""Which codes a matrix gets: a grid for each block, and rounding that keeps outputs rather than weights.

The rounding is GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one after another, and the error of
each is made good by the columns still to come, as the inputs' second moments H say. It is computed as Babai's nearest
plane (Chen et al. 2025, arXiv:2507.18553): with H = L Lᵀ, columns are rounded from the last to the first, and column k
aims at w_k + Σ_{l>k} (L_lk / L_kk) (w_l - q_l). That gives GPTQ's codes without the inverse of H, and what earlier
columns ask of a panel of columns is one matrix product.

Three choices beyond the papers, each measured (docs/quantization.md): blocks are taken in order of falling importance;
so are columns within a block; and a block's grid is chosen when its turn comes, each column's error counting as it does
in GPTQ's own loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptc.errors import PassError
from adaptc.ir.grid import candidates

STRIP = 8
"""Columns rounded one by one before their errors reach the rest of the block by a matrix product."""

PANEL = 256
"""Columns that get the errors of all panels before theirs in one matrix product."""

AT_ONCE = 1 << 17
"""Numbers that an operator works on at once while grids are tried."""

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: calibration inputs do not say everything."""


@dataclass(frozen=True, slots=True)
class Curvature:
    """What rounding needs of a Hessian; made once for all matrices that share inputs. Tensors are where it was.

    Attributes:
        order: int64 [columns], by rising importance: rounding begins at the end. Blocks stay whole.
        lower: float32 [columns, columns], lower triangular with a diagonal of 1: L_lk / L_kk, where L Lᵀ is the Hessian
            in that order.
        diagonal: float32 [columns], L_kk: what an error of a column counts.
        block_size: Columns in a block.
    """

    order: Tensor
    lower: Tensor
    diagonal: Tensor
    block_size: int


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix in codes.

    Attributes:
        codes: uint8 [rows, columns].
        scales: float32 [rows, blocks].
        zeros: float32 [rows, blocks], whole numbers.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def curvature(hessian: Tensor, block_size: int) -> Curvature:
    """Factor a Hessian.

    Args:
        hessian: float32 [columns, columns], mean of x xᵀ; columns is a multiple of block_size.
        block_size: Columns in a block.

    Raises:
        PassError: the Hessian is not finite or not positive.
    """
    weight = hessian.diagonal().reshape(-1, block_size)
    inner = torch.argsort(weight, dim=1, stable=True)
    outer = torch.argsort(weight.sum(1), stable=True)
    starts = torch.arange(len(weight), device=weight.device)[:, None] * block_size
    order = (inner + starts)[outer].reshape(-1)
    damped = hessian[order[:, None], order]
    mean = weight.mean()
    damped.diagonal().add_(torch.where(mean > 0, DAMPING * mean, 1.0))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(torch.isfinite(mean)):
        raise PassError("the calibration inputs' Hessian is not positive: they may hold NaN or infinity")
    diagonal = lower.diagonal().clone()
    return Curvature(order, lower.div_(diagonal), diagonal, block_size)


def round_codes(matrix: Tensor, curve: Curvature, bits: int, *, symmetric: bool) -> Rounded:
    """Round a matrix so that its outputs change least.

    Args:
        matrix: float32 [rows, columns], where the curvature is.
        curve: Curvature from the inputs that the matrix meets.
        bits: 4 or 8.
        symmetric: Keep every zero point at 2^(bits - 1).
    """
    size = curve.block_size
    rows, columns = matrix.shape
    errors = matrix.T[curve.order].contiguous()  # [columns, rows]; weights, until they are rounded
    codes = matrix.new_empty(columns, rows, dtype=torch.uint8)
    grid = matrix.new_empty(2, columns // size, rows)
    panel = max(size, PANEL // size * size)
    for last in range(columns, 0, -panel):
        first = max(0, last - panel)
        goals = errors[first:last] + curve.lower[last:, first:last].T @ errors[last:]
        for end in range(last, first, -size):
            here, inside = slice(end - size, end), goals[end - size - first : end - first]
            inside.addmm_(curve.lower[end:last, here].T, errors[end:last])
            block = _Block(inside, errors[here], curve.lower[here, here], curve.diagonal[here])
            scale, zero, codes[here], errors[here] = block.best(bits, symmetric=symmetric)
            grid[0, here.start // size], grid[1, here.start // size] = scale, zero
    place, blocks = torch.argsort(curve.order), torch.argsort(curve.order[::size] // size)
    return Rounded(codes[place].T.contiguous(), grid[0, blocks].T.contiguous(), grid[1, blocks].T.contiguous())


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring columns whose turn has come.

    Attributes:
        goals: float32 [size, rows], what the columns aim at after the errors of all columns before the block.
        weights: float32 [size, rows], the columns themselves.
        lower: float32 [size, size], their part of the curvature's.
        diagonal: float32 [size], likewise.
    """

    goals: Tensor
    weights: Tensor
    lower: Tensor
    diagonal: Tensor

    def best(self, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose the grid on which plain rounding loses least, and round.

        Returns:
            Scale and zero point, each [rows]; codes and errors, each [size, rows].
        """
        goals = self.goals
        scales, zeros = candidates(goals.amin(0), goals.amax(0), bits, symmetric=symmetric, xp=torch)
        best = self._losses(scales, zeros, bits).argmin(0)[None]
        scale, zero = scales.gather(0, best)[0], zeros.gather(0, best)[0]
        codes, errors = self._rounded(scale, zero, bits)
        return scale, zero, codes.add_(zero), errors

    def _losses(self, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
        """What plain rounding loses on each grid [grids, rows]."""
        losses, diagonal = [], self.diagonal[:, None]
        # Several grids at once where blocks are few, as many as stay in the cache: an operator costs its call.
        at_once = max(1, AT_ONCE // self.goals.numel())
        for scale, low in zip(
            torch.split(scales[:, None], at_once), torch.split(-zeros[:, None], at_once), strict=True
        ):
            error = (self.goals * (1 / scale)).round_()
            torch.clamp(error, low, low + (2**bits - 1), out=error)
            losses.append(error.mul_(scale).sub_(self.goals).mul_(diagonal).square_().sum(1))
        return torch.cat(losses)

    def _rounded(self, scale: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """GPTQ over the block; codes less their zero points, and errors."""
        low, high, inverse = -zero, 2**bits - 1 - zero, 1 / scale
        goals, codes, errors = self.goals, torch.empty_like(self.goals), torch.empty_like(self.goals)
        factors = self.lower.T.contiguous()
        for last in range(len(goals), 0, -STRIP):
            first = max(0, last - STRIP)
            for k in range(last - 1, first - 1, -1):
                if k + 1 < last:
                    goals[k : k + 1].addmm_(factors[k : k + 1, k + 1 : last], errors[k + 1 : last])
                code = codes[k]
                torch.clamp(torch.mul(goals[k], inverse, out=code).round_(), low, high, out=code)
                torch.addcmul(self.weights[k], code, scale, value=-1, out=errors[k])
            if first:
                goals[:first].addmm_(factors[:first, first:last], errors[first:last])
        return codes, errors
