"""Distances between the logits of two models, with exact gradients, and their sums in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..data import LOGIT_BYTES

__all__ = ["completed", "kl_divergence", "squares", "summed", "yes_or_no"]


class _KL(torch.autograd.Function):
    """As `kl_divergence`.

    The gradient is softmax(logits) - softmax(wanted): exactly zero where the two are the same, which that of
    `kl_div` after `log_softmax` is not; Adam would make whole steps of its rounding.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        found, goal = logits.to(wide).log_softmax(-1), wanted.to(wide).log_softmax(-1)
        likely = goal.exp()
        ctx.dtype = logits.dtype
        ctx.save_for_backward(found.exp() - likely)
        return torch.where(likely > 0, likely * (goal - found), 0.0).sum(-1)  # minus infinity twice is no difference

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (gradient[..., None] * difference).to(ctx.dtype), None


def kl_divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """KL(softmax(wanted) ‖ softmax(logits)) over the last axis.

    Args:
        logits: Of the model that gradients are taken of.
        wanted: Of the other, in the same shape.
    """
    return _KL.apply(logits, wanted)


def squares(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference over the last axis."""
    wide = torch.promote_types(found.dtype, torch.float32)
    return (found.to(wide) - wanted.to(wide)).square().mean(-1)


def yes_or_no(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over labels that may each be true or not."""
    return kl_divergence(*(torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (found, wanted))).mean(-1)


def completed(logits: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities of all tokens that are as wanted for some, and go on for the others as logits have it.

    The divergence from it is that over these tokens each and all others together, and so is its gradient.

    Args:
        logits: `[tokens, vocabulary]`.
        ids: Those that are known, `[tokens, k]`.
        values: Their log-probabilities, `[tokens, k]`.
    """
    own = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    values = values.to(own.dtype)
    rest, own_rest = (1 - part.exp().sum(-1, keepdim=True) for part in (values, own.gather(-1, ids)))
    least = torch.finfo(own.dtype).eps
    return (own + rest.clamp(min=least).log() - own_rest.clamp(min=least).log()).scatter(-1, ids, values)


def summed(
    found: Tensor, wanted: Sequence[Tensor], distance: Callable[..., Tensor], width: int | None = None
) -> Tensor:
    """Sums the distances of items, some at a time; what they need is made anew in the backward, and not held.

    Args:
        found: `[items, ...]`.
        wanted: What is known of the original, each `[items, ...]`.
        distance: Of some of them.
        width: Numbers that an item has at most.
    """
    size = max(1, LOGIT_BYTES // (4 * (width or found[:1].numel() or 1)))
    parts = [
        checkpoint(distance, *pieces, use_reentrant=False, preserve_rng_state=False).sum()
        for pieces in zip(*(tensor.split(size) for tensor in (found, *wanted)), strict=True)
    ]
    return torch.stack(parts).sum()
