"""Pure tensor functions of the method: an FFN's weights as sub-MLPs, and their fusion into centroids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["FFNWeights", "Fusion", "fuse_weights", "select_units"]


@dataclass(frozen=True)
class FFNWeights:
    """The weights of one FFN of I hidden units, in the layout of `nn.Linear` whatever the model's own layout.

    y = down · (σ(up x + up_bias)) + down_bias, or with a gate y = down · (σ(gate x + gate_bias) ⊙ (up x + up_bias))
    + down_bias. Unit i is the sub-MLP (up_i, up_bias_i, gate_i, gate_bias_i, down_i).

    Args:
        up: `[I, d_in]`.
        down: `[d_out, I]`.
        up_bias: `[I]`, where the FFN has one.
        gate: `[I, d_in]`, in gated FFNs.
        gate_bias: `[I]`, in gated FFNs that have one.
        down_bias: `[d_out]`, where the FFN has one.
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def width(self) -> int:
        """Number of hidden units, I."""
        return self.up.shape[0]

    @property
    def unit_size(self) -> int:
        """Numbers that make up one unit, f: 2 d + 1 for an FFN with biases and no gate."""
        return sum(column.shape[1] for column in self._columns())

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the parts whose product the activation sees: the gate's, or without one the up projection's."""
        names = ("up", "up_bias") if self.gate is None else ("gate", "gate_bias")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the parts whose product the gate's activation multiplies; none without a gate."""
        names = () if self.gate is None else ("up", "up_bias")
        return tuple(name for name in names if getattr(self, name) is not None)

    def features(self) -> Tensor:
        """The sub-MLPs as vectors v_i = [up_i, up_bias_i, gate_i, gate_bias_i, down_i] (absent parts left out).

        Returns:
            Shape `[I, f]`, float32 or wider.
        """
        joined = torch.cat([column.detach() for column in self._columns()], dim=1)
        return joined if joined.dtype in (torch.float32, torch.float64) else joined.float()

    def _columns(self) -> list[Tensor]:
        parts = (self.up, self.up_bias, self.gate, self.gate_bias, self.down.T)
        return [part if part.dim() == 2 else part[:, None] for part in parts if part is not None]

    def with_units(self, features: Tensor) -> FFNWeights:
        """Other units of the same kind: what `features` takes apart, put together again.

        Args:
            features: `[k, f]`.

        Returns:
            Weights of k units in the dtypes and on the devices of these; `down_bias` is a copy.
        """
        columns = self._columns()
        cut = iter(features.detach().split([column.shape[1] for column in columns], dim=1))

        def next_part(part: Tensor | None) -> Tensor | None:
            return None if part is None else next(cut).reshape(-1, *part.shape[1:]).to(part)

        up, up_bias, gate, gate_bias = map(next_part, (self.up, self.up_bias, self.gate, self.gate_bias))
        assert up is not None
        down_bias = None if self.down_bias is None else self.down_bias.detach().clone()
        return FFNWeights(up, next(cut).T.to(self.down).contiguous(), up_bias, gate, gate_bias, down_bias)

    def merged(self, labels: np.ndarray) -> FFNWeights:
        """Replaces the units of each cluster by their mean.

        Args:
            labels: Cluster of each unit, shape `[I]`, values 0 to k - 1, each occurring.

        Returns:
            New weights of k units in the dtypes and on the devices of the originals; `down_bias` is a copy.
        """
        index = torch.from_numpy(labels)
        counts = torch.bincount(index)

        def mean(part: Tensor, dim: int = 0) -> Tensor:
            rows = part.detach().movedim(dim, 0).double().cpu()
            sums = torch.zeros(len(counts), *rows.shape[1:], dtype=torch.float64).index_add_(0, index, rows)
            means = sums / counts.view(-1, *[1] * (rows.dim() - 1))
            return means.movedim(0, dim).to(part.device, part.dtype).contiguous()

        up_bias, gate, gate_bias = (
            None if part is None else mean(part) for part in (self.up_bias, self.gate, self.gate_bias)
        )
        down_bias = None if self.down_bias is None else self.down_bias.detach().clone()
        return FFNWeights(mean(self.up), mean(self.down, dim=1), up_bias, gate, gate_bias, down_bias)

    def with_down(self, down: Tensor, down_bias: Tensor) -> FFNWeights:
        """The same units with other output weights, cast to the dtype and device of these.

        Args:
            down: `[d_out, I]`.
            down_bias: `[d_out]`; left out where the FFN has none.
        """
        bias = None if self.down_bias is None else down_bias.to(self.down_bias)
        return replace(self, down=down.to(self.down), down_bias=bias)

    def padded(self, width: int) -> FFNWeights:
        """The same FFN with zero units behind its own, which add 0 · σ(0) to the output.

        Args:
            width: Units afterwards, I or more.
        """
        more = width - self.width
        up_bias, gate_bias = (
            None if part is None else nn.functional.pad(part, (0, more)) for part in (self.up_bias, self.gate_bias)
        )
        gate = None if self.gate is None else nn.functional.pad(self.gate, (0, 0, 0, more))
        up, down = nn.functional.pad(self.up, (0, 0, 0, more)), nn.functional.pad(self.down, (0, more))
        return FFNWeights(up, down, up_bias, gate, gate_bias, self.down_bias)

    def picked(self, kept: np.ndarray) -> FFNWeights:
        """Some of the units as they are.

        Args:
            kept: Indices of units, `[k]`.
        """
        index = torch.from_numpy(kept)
        up_bias, gate, gate_bias = (
            None if part is None else part.detach()[index] for part in (self.up_bias, self.gate, self.gate_bias)
        )
        down_bias = None if self.down_bias is None else self.down_bias.detach().clone()
        return FFNWeights(self.up.detach()[index], self.down.detach()[:, index], up_bias, gate, gate_bias, down_bias)


@dataclass(frozen=True)
class Fusion:
    """What became of one FFN: its narrow weights, and P.

    Args:
        weights: Weights of k units.
        cluster_sizes: The diagonal of P: how many original units each new one stands for; `[k]`, int32, summing to I.
        power: Power of them that P is, the rest being in the output weights.
    """

    weights: FFNWeights
    cluster_sizes: Tensor
    power: float = 1.0

    def at_power(self, power: float) -> Fusion:
        """The same function with another power of the cluster sizes apart.

        y = down · (P ⊙ σ(z)) is y = (down · P^(1-p)) · (P^p ⊙ σ(z)).

        Args:
            power: The power, 0 to 1.
        """
        if power == self.power:
            return self
        sizes = self.cluster_sizes.to(self.weights.down.device)
        # In single precision, as the forward has it: what is divided by here is what is multiplied by there.
        factor = (sizes**self.power).double() / (sizes**power).double()
        down = (self.weights.down * factor).to(self.weights.down.dtype)
        return Fusion(replace(self.weights, down=down), self.cluster_sizes, power)


def fuse_weights(weights: FFNWeights, labels: np.ndarray) -> Fusion:
    """MLP Fusion (arXiv 2307.08941, section 4): centroids of the sub-MLPs, and the cluster sizes P beside them.

    The fused FFN is y = down~ · (P ⊙ σ(up~ x + up_bias~)) + down_bias. It equals the original where the units of
    each cluster are equal; and because P is no part of the weights, one Adam step moves it as far as the original.

    Args:
        weights: The FFN of I units.
        labels: Cluster of each unit, shape `[I]`, values 0 to k - 1, each occurring.

    Returns:
        The FFN of k units.

    Example:
        >>> twins = FFNWeights(up=torch.ones(2, 3), down=torch.ones(3, 2))
        >>> fuse_weights(twins, np.array([0, 0])).cluster_sizes
        tensor([2], dtype=torch.int32)
    """
    return Fusion(weights.merged(labels), torch.from_numpy(np.bincount(labels)).to(torch.int32))


def select_units(weights: FFNWeights, kept: np.ndarray, labels: np.ndarray) -> Fusion:
    """Keeps real units instead of centroids; P counts the units that each stands for.

    The kept units' output weights are divided by P, so that without a refit the FFN computes what they compute alone.

    Args:
        weights: The FFN of I units.
        kept: Indices of the units to keep, `[k]`.
        labels: For each unit the position in `kept` of the one that stands for it, `[I]`.

    Returns:
        The FFN of k units.
    """
    sizes = torch.from_numpy(np.bincount(labels)).to(torch.int32)
    units = weights.picked(kept)
    return Fusion(replace(units, down=units.down / sizes.to(units.down)), sizes)
