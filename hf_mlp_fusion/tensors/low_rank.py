"""A projection of low rank: two thin matrices where the stock one is wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LowRankLinear"]


class LowRankLinear(nn.Module):
    """y = B A x + b.

    Args:
        in_features: Inputs, n.
        out_features: Outputs, m.
        rank: Rows of A and columns of B, r.
        bias: Whether there is a b.
        device: Where the weights are made.
        dtype: Their dtype.

    Shape:
        `first.weight` (A) `[r, n]`, `second.weight` (B) `[m, r]`, `second.bias` (b) `[m]`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.first = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.second = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[..., n]` to `[..., m]`."""
        return self.second(self.first(inputs))

    @property
    def weight(self) -> Tensor:
        """The product B A, `[m, n]`: some stock forwards read the dtype of a projection's weight."""
        return self.second.weight @ self.first.weight
