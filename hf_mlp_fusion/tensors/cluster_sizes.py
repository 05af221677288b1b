"""Cluster sizes, and the numbers that P is made with: what they may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BrokenCheckpointError

__all__ = ["as_integers", "check_cluster_sizes", "check_kernel_scales", "even_cluster_sizes"]


def even_cluster_sizes(width: int, original_width: int) -> Tensor:
    """The P of a fused FFN with random weights: sizes as equal as integers allow.

    Args:
        width: k, 1 to `original_width`.
        original_width: I.

    Returns:
        `[k]`, int32, positive, summing to I.
    """
    sizes = torch.full((width,), original_width // width, dtype=torch.int32)
    sizes[: original_width % width] += 1
    return sizes


def as_integers(sizes: Tensor) -> Tensor:
    """Integers for floats that are whole numbers, as int32; anything else as it is.

    Args:
        sizes: A tensor that may be the diagonal of P.
    """
    if not sizes.is_floating_point() or not bool((sizes == sizes.round()).all()):
        return sizes
    return sizes.to(torch.int32) if bool((sizes.abs() < 2**31).all()) else sizes


def check_cluster_sizes(sizes: Tensor, original_width: int, name: str) -> None:
    """Checks that a tensor can be the diagonal of P.

    Args:
        sizes: The tensor, shape `[k]`, or `[experts, k]` of a stack.
        original_width: I, which the sizes must sum to.
        name: Its name in the checkpoint, for the message.

    Raises:
        BrokenCheckpointError: Not integers, not positive, or a wrong sum.
    """
    fault = None
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        fault = f"it has dtype {sizes.dtype}, cluster sizes are integers"
    elif int(sizes.min()) < 1:
        fault = f"it holds {int(sizes.min())}, cluster sizes are positive"
    elif int(sizes.max()) > original_width:  # such a sum might overflow
        fault = f"it holds {int(sizes.max())}, the layer had {original_width} units"
    elif wrong := [total for total in sizes.sum(-1).flatten().tolist() if total != original_width]:
        fault = f"it sums to {wrong[0]}, the layer had {original_width} units"
    if fault:
        raise BrokenCheckpointError(
            f"the checkpoint's scaling matrix {name!r} is broken: {fault}. Fuse the original model again, "
            "or fetch the files anew"
        )


def check_kernel_scales(scales: Tensor, name: str) -> None:
    """Checks that a tensor can be the scales of an NTK calibration, with the power of P behind them or without.

    Args:
        scales: The tensor, shape `[3]` or `[4]`, or `[experts, ...]` of a stack.
        name: Its name in the checkpoint, for the message.

    Raises:
        BrokenCheckpointError: A scale is not positive, or the power not from 0 to 1, or not the same for all experts.
    """
    powers = scales[..., 3:]
    if not scales.isfinite().all() or (scales[..., :3] <= 0).any():
        raise BrokenCheckpointError(f"{name} holds what is no positive number")
    if (powers < 0).any() or (powers > 1).any() or len(powers.unique()) > 1:
        raise BrokenCheckpointError(
            f"{name} holds {powers.flatten().tolist()[:3]} where one power from 0 to 1 belongs"
        )
