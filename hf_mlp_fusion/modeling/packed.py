"""FFNs that keep gate and up projection in one matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..tensors import FFNWeights
from .ffn import FFN
from .rows import Rows

__all__ = ["PackedFFN", "apart", "together"]


class PackedFFN(FFN):
    """An FFN whose `up` holds gate and up, all of one first (`"halves"`) or unit by unit (`"interleaved"`)."""

    forms: ClassVar[tuple[str, ...]] = ("fused", "narrow")
    """Not `"low_rank"`: two products of thin matrices are no product of thin matrices of the same size."""

    @property
    def width(self) -> int:
        """Hidden units it has now."""
        return super().width // 2

    def read(self) -> FFNWeights:
        """The weights, in the layout of `nn.Linear`, gate and up apart."""
        packed = super().read()
        gate, up = self._apart(packed.up)
        gate_bias, up_bias = (None, None) if packed.up_bias is None else self._apart(packed.up_bias)
        return replace(packed, up=up, up_bias=up_bias, gate=gate, gate_bias=gate_bias)

    def tensors(self, weights: FFNWeights) -> dict[str, Tensor]:
        """Weights as the parameters of its projections hold them, by their names below the host."""
        assert weights.gate is not None
        up = self._together(weights.gate, weights.up)
        bias = None
        if weights.up_bias is not None and weights.gate_bias is not None:
            bias = self._together(weights.gate_bias, weights.up_bias)
        return super().tensors(replace(weights, up=up, up_bias=bias))

    def outputs(self, hidden: Tensor) -> Tensor:
        """Runs it by itself: no dropout, no residual, no norm."""
        gate, up = self._apart(self.projections["up"](hidden), dim=-1)
        return self.exit(self.activation(gate) * up)

    def kernel_parts(self) -> dict[str, list[str | Rows]]:
        """What s1, s2 and s3 scale: of interleaved rows, which no range holds, s2's part alone."""
        outer = {"outer": super().kernel_parts()["outer"]}
        if self.spec.packed != "halves":
            return outer
        names, width = self._names("up"), self.width
        gate: list[str | Rows] = [Rows(name, 0, width) for name in names]
        up: list[str | Rows] = [Rows(name, width, 2 * width) for name in names]
        return {"inner": gate, "value": up} | outer

    def _apart(self, rows: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        return apart(rows, halves=self.spec.packed == "halves", dim=dim)

    def _together(self, gate: Tensor, up: Tensor) -> Tensor:
        return together(gate, up, halves=self.spec.packed == "halves")


def apart(rows: Tensor, *, halves: bool, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Takes gate and up apart; views.

    Args:
        rows: Both.
        halves: Whether the gate is all of the first half; gate and up come in turn otherwise.
        dim: Dimension of the units.
    """
    rows = rows.movedim(dim, 0)
    parts = rows.chunk(2) if halves else (rows[0::2], rows[1::2])
    return parts[0].movedim(0, dim), parts[1].movedim(0, dim)


def together(gate: Tensor, up: Tensor, *, halves: bool, dim: int = 0) -> Tensor:
    """Puts gate and up together: the inverse of `apart`.

    Args:
        gate: The gate's.
        up: The up projection's.
        halves: As for `apart`.
        dim: As for `apart`.
    """
    if halves:
        return torch.cat([gate, up], dim=dim)
    return torch.stack([gate.movedim(dim, 0), up.movedim(dim, 0)], dim=1).flatten(0, 1).movedim(0, dim)
