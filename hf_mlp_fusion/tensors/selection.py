"""Selection of real hidden units, and the scaling matrix P of a selection. Pure functions of second moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .moments import Moments
from .refit import RIDGE, cholesky

__all__ = ["Elimination", "assign_units", "eliminate"]

# Units dropped between two updates of the whole matrices: spares memory traffic, changes no result.
_BLOCK = 64


@dataclass(frozen=True)
class Elimination:
    """A backward elimination of hidden units.

    Args:
        width: Units before, I.
        order: The units in the order in which they were dropped, `[drops]`, int64.
        rise: The rise of the squared error over the full width's after 0, 1, ... drops, `[drops + 1]`, float64.
    """

    width: int
    order: Tensor
    rise: Tensor

    def kept(self, k: int) -> Tensor:
        """The units that are left when there are k, ascending, `[k]`, int64.

        Args:
            k: How many, at least I less the drops.
        """
        left = torch.ones(self.width, dtype=torch.bool, device=self.order.device)
        left[self.order[: self.width - k]] = False
        return left.nonzero()[:, 0]


def eliminate(
    moments: Sequence[Moments], k: int, *, ridge: float = RIDGE, metrics: Sequence[Tensor | None] | None = None
) -> list[Elimination]:
    """Drops hidden units of FFNs one by one by optimal brain surgeon, the output weights refitted after each.

    Each time the unit goes whose loss raises the refitted squared output error least: w_i G w_iᵀ / K_ii, with K the
    inverse of the damped Gram matrix of the units still there, w_i the refitted weights of unit i and G the metric of
    the error (Hassibi and Stork, 1992; for structured pruning Kurtic et al., arXiv 2302.04089).

    What is updated is K and S = W G Wᵀ: dropping unit u takes k kᵀ from K and k qᵀ + q kᵀ from S, where
    k = K_u / √K_uu and q = S_u / √K_uu - k S_uu / 2 K_uu. So a drop costs nothing that grows with the size of the
    output, and FFNs of one width go through it together. In memory are K, S and, in the beginning, one `[I, d]` of an
    FFN: 16 I² bytes for each FFN, besides its moments.

    Args:
        moments: Of all I units of each FFN; I is the same for all, and so is the device.
        k: Units to keep, 1 to I.
        ridge: Damping relative to the mean diagonal of a Gram matrix.
        metrics: Of each FFN a factor of G, L with G = L Lᵀ, `[d, r]`: the error of an output e is |e L|². The identity
            where there is none.

    Returns:
        Of each FFN how it went.
    """
    count, width = len(moments), moments[0].width
    inverse, squares = moments[0].gram.new_empty(2, count, width, width, dtype=torch.float64)
    for number, (item, factor) in enumerate(zip(moments, metrics or [None] * count, strict=True)):
        torch.cholesky_inverse(cholesky(item.gram, ridge), out=inverse[number].mT)  # in columns, or it makes a copy
        weight = inverse[number] @ item.cross
        weight = weight if factor is None else weight @ factor.to(weight)
        torch.mm(weight, weight.T, out=squares[number])
        del weight
    every = torch.arange(count, device=inverse.device)
    units = torch.arange(width, device=inverse.device).repeat(count, 1)  # that the rows are of
    gone = torch.zeros_like(units, dtype=torch.bool)
    order: list[Tensor] = []
    rises: list[Tensor] = []
    while (left := width - len(order)) > k:
        if 4 * left <= 3 * units.shape[1]:  # not each time: to copy costs more than a few rows too many
            stay = (~gone).nonzero()[:, 1].view(count, left)
            inverse, squares = _among(inverse, stay), _among(squares, stay)
            units, gone = units.gather(1, stay), gone.gather(1, stay)
        steps = min(_BLOCK, left - k)
        # The changes since the last update, a row a drop: K - Σ k kᵀ and S - Σ (k qᵀ + q kᵀ).
        k_rows, q_rows = inverse.new_zeros(2, count, steps, units.shape[1])
        k_diagonal = inverse.diagonal(dim1=1, dim2=2).masked_fill(gone, 1.0)
        s_diagonal = squares.diagonal(dim1=1, dim2=2).clamp(min=0).masked_fill_(gone, torch.inf)
        for step in range(steps):
            rise, row = (s_diagonal / k_diagonal).min(1)
            rises.append(rise)
            order.append(units[every, row])
            past_k, past_q = k_rows[:, :step], q_rows[:, :step]
            own_k, own_q = past_k[every, :, row][:, None], past_q[every, :, row][:, None]
            size = k_diagonal[every, row].sqrt()[:, None]
            k_row = (inverse[every, row] - (own_k @ past_k)[:, 0]) / size
            s_row = (squares[every, row] - (own_q @ past_k + own_k @ past_q)[:, 0]) / size
            q_row = s_row - k_row * rise[:, None] / 2
            k_rows[:, step], q_rows[:, step] = k_row, q_row
            k_diagonal -= k_row.square()
            s_diagonal = (s_diagonal - 2 * k_row * q_row).clamp_(min=0)
            gone[every, row], k_diagonal[every, row], s_diagonal[every, row] = True, 1.0, torch.inf
        inverse.baddbmm_(k_rows.mT, k_rows, alpha=-1)
        squares.baddbmm_(k_rows.mT, q_rows, alpha=-1).baddbmm_(q_rows.mT, k_rows, alpha=-1)
    if not order:
        return [Elimination(width, units[0, :0], inverse.new_zeros(1)) for _ in range(count)]
    errors = torch.nn.functional.pad(torch.stack(rises, 1).cumsum(1), (1, 0))
    return [Elimination(width, *item) for item in zip(torch.stack(order, 1), errors, strict=True)]


def _among(matrices: Tensor, rows: Tensor) -> Tensor:
    """Some rows and columns of matrices, of each its own, in the memory of the matrices, which are lost.

    Args:
        matrices: `[count, n, n]`, contiguous.
        rows: `[count, m]`, ascending.
    """
    count, size = rows.shape
    packed = matrices.view(-1)[: count * size**2].view(count, size, size)
    # What is written never reaches what is still to be read: row i of the new ones comes from row i of the old or a
    # later one, and they are longer.
    for matrix, into, chosen in zip(matrices, packed, rows, strict=True):
        for start in range(0, size, _BLOCK):
            some = chosen[start : start + _BLOCK]
            into[start : start + _BLOCK] = matrix[some][:, chosen]
    return packed


def assign_units(moments: Moments, kept: Tensor) -> np.ndarray:
    """Gives every unit to the kept unit whose activations are most like its own.

    Likeness is the absolute correlation (about zero: cosine) of activations; a kept unit stays with itself.

    Args:
        moments: Of all I units.
        kept: Indices of the kept units, `[k]`.

    Returns:
        For each unit the position in `kept` of the unit that stands for it, `[I]`, int64.
    """
    size = moments.gram.diagonal().clamp(min=0).sqrt()
    likeness = moments.gram[:, kept].abs() / size[kept].clamp(min=torch.finfo(torch.float64).tiny)
    labels = likeness.argmax(1)
    labels[kept] = torch.arange(len(kept), device=labels.device)
    return labels.cpu().numpy()
