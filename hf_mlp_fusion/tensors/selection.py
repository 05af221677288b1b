"""Selection of real hidden units, and the scaling matrix P of a selection. Pure functions of second moments."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .moments import Moments
from .refit import RIDGE, cholesky

__all__ = ["assign_units", "obs_select"]

# Units dropped between two updates of the whole inverse: spares memory traffic, changes no result.
_BLOCK = 64


def obs_select(moments: Moments, k: int, *, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Optimal brain surgeon on whole hidden units, the output weights refitted after each.

    Units are dropped one by one, each time the one whose loss raises the refitted squared output error least:
    |w_i|² / M_ii, with M the inverse of the damped Gram matrix of the units still there, and w_i the refitted weights
    of unit i (Hassibi and Stork, 1992; for structured pruning Kurtic et al., arXiv 2302.04089).

    Args:
        moments: Of all I units.
        k: Units to keep, 1 to I.
        ridge: Damping relative to the mean diagonal of the Gram matrix.

    Returns:
        Indices of the kept units, ascending, `[k]`, int64; and the rise of the squared error over the full width's
        after 0, 1, ... drops, `[I - k + 1]`, float64.
    """
    inverse = torch.cholesky_inverse(cholesky(moments.gram, ridge))
    weight = inverse @ moments.cross
    alive = torch.arange(moments.width, device=weight.device)
    rise = [weight.new_zeros(())]
    while len(alive) > k:
        steps = min(_BLOCK, len(alive) - k)
        updates = inverse.new_zeros(len(alive), steps)
        diagonal = inverse.diagonal().clone()
        gone = torch.zeros(len(alive), dtype=torch.bool, device=weight.device)
        for step in range(steps):
            score = (weight.square().sum(1) / diagonal).masked_fill_(gone, torch.inf)
            unit = int(score.argmin())
            rise.append(rise[-1] + score[unit])
            column = (inverse[:, unit] - updates[:, :step] @ updates[unit, :step]) / diagonal[unit].sqrt()
            weight.addr_(column, weight[unit] / diagonal[unit].sqrt(), alpha=-1)
            updates[:, step] = column
            gone[unit] = True
            diagonal = (diagonal - column.square()).masked_fill_(gone, 1.0)
        inverse = inverse[~gone][:, ~gone] - updates[~gone] @ updates[~gone].T
        weight, alive = weight[~gone], alive[~gone]
    return alive, torch.stack(rise)


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
