"""`UnitScaling`: P and the numbers of the NTK calibration, of one FFN; `ExpertScaling` of one expert of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["ExpertScaling", "UnitScaling", "as_stored"]


class UnitScaling:
    """P of one FFN, and the numbers of its NTK calibration.

    Attributes:
        cluster_sizes: How many units each stands for, `[k]`, int32.
        power: Power of them that the diagonal of P is; the rest is in the weights.
        original_width: Units of the FFN before fusion, I.
        inner_scale: s1 of the NTK calibration (`calibrate_ntk`), 1.0 without one: σ'(z) = s2 P ⊙ σ(s1 z).
        outer_scale: s2.
        value_scale: s3, in a gated FFN, whose output is linear in the up projection too: s2 s3 stands where s2 does.
    """

    cluster_sizes: Tensor
    power: float
    original_width: int
    inner_scale: float
    outer_scale: float
    value_scale: float

    @property
    def factor(self) -> Tensor:
        """s2 s3 P, what the activation is multiplied by, `[k]`."""
        scale = self.outer_scale * self.value_scale
        diagonal = self.diagonal
        return diagonal if scale == 1.0 else diagonal * scale

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of P, of a stack that of each expert: the cluster sizes to their power."""
        return self.cluster_sizes if self.power == 1.0 else self.cluster_sizes**self.power

    @property
    def is_identity(self) -> bool:
        """Whether nothing is multiplied: all is in the weights."""
        return self.power == 0.0 and self.scales == (1.0, 1.0)

    @property
    def scales(self) -> tuple[float, ...]:
        """(s1, s2), or (s1, s2, s3) where there is an s3; can be set."""
        scales = (self.inner_scale, self.outer_scale, self.value_scale)
        return scales[:2] if self.value_scale == 1.0 else scales

    @scales.setter
    def scales(self, scales: Sequence[float]) -> None:
        """Sets s1 and s2, and s3 where there is one."""
        self.inner_scale, self.outer_scale, self.value_scale = map(as_stored, (*scales, 1.0)[:3])


def as_stored(scale: float) -> float:
    """A scale as checkpoints store it: in single precision, which every device has."""
    return float(np.float32(scale))


class ExpertScaling(UnitScaling):
    """P of one expert of a stack, and its scales as they are now.

    Args:
        stack: The stack's P.
        expert: Number of the expert.
    """

    def __init__(self, stack: Any, expert: int) -> None:
        self.stack, self.expert, self.power = stack, expert, stack.power
        self.cluster_sizes, self.original_width = stack.cluster_sizes[expert], stack.original_width
        self.inner_scale, self.outer_scale, self.value_scale = stack.expert_scales[expert]

    @UnitScaling.scales.setter  # type: ignore[attr-defined, untyped-decorator]
    def scales(self, scales: Sequence[float]) -> None:
        """Sets s1 and s2, and s3 where there is one, in the stack."""
        self.inner_scale, self.outer_scale, self.value_scale = map(as_stored, (*scales, 1.0)[:3])
        self.stack.expert_scales[self.expert] = (self.inner_scale, self.outer_scale, self.value_scale)
        self.stack.keep_scales()
