"""Closed-form refit of an FFN's down projection: ridge regression on second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments

__all__ = ["RIDGE", "cholesky", "ridge_refit"]

RIDGE = 1e-3
"""Penalty relative to the mean diagonal of the Gram matrix. From 1e-4 to 1e-2 the results hardly differ."""


def cholesky(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """Factorises a Gram matrix with its symmetry restored and its diagonal raised.

    Args:
        gram: `[n, n]`, singular or zero too. Where rounding makes it indefinite, as that of activations which hardly
            vary, its diagonal is raised until it is not.
        ridge: What to add, relative to the mean of the diagonal.

    Returns:
        The lower factor, `[n, n]`, float64.

    Raises:
        ValueError: It is not finite.
    """
    gram = gram.double()
    # Nothing besides what goes in, this and the factor: a Gram matrix may be gigabytes.
    symmetric = (gram + gram.T).div_(2)
    numbers = torch.finfo(torch.float64)
    largest = torch.stack(symmetric.aminmax()).abs().max()
    least = (numbers.eps * largest).clamp(min=numbers.tiny / numbers.eps)
    diagonal = symmetric.diagonal().clone()
    raised = torch.maximum(ridge * diagonal.mean(), least)
    while raised.isfinite():
        symmetric.diagonal().copy_(diagonal + raised)
        factor, failed = torch.linalg.cholesky_ex(symmetric)
        if not failed:
            return factor
        raised = 10 * raised
    raise ValueError("a Gram matrix holds NaN or infinity")


def ridge_refit(moments: Moments, prior: Tensor, *, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The down projection and bias that map hidden activations best on a wanted output.

    Minimises E|y - W h - b|² + ridge · mean(diag E h hᵀ) · ‖W - prior‖²; the bias is not penalised. Directions that
    the tokens say little of keep the prior's value.

    Args:
        moments: Of the k hidden units and the output wanted.
        prior: Weights to shrink to, `[d, k]`.
        ridge: The penalty.

    Returns:
        Weights `[d, k]` and bias `[d]`, float64; P is not divided out. About zero, the bias is zero.
    """
    prior = prior.double()
    gap = moments.cross - moments.gram @ prior.T
    weight = prior + torch.cholesky_solve(gap, cholesky(moments.gram, ridge)).T
    return weight, moments.y_mean - weight @ moments.h_mean
