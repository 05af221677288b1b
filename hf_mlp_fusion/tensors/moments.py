"""Second moments of hidden activations and of the output wanted from them: all that selection and refit need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]

# Tokens whose products are summed in float32 before they join the float64 sums.
_TOKENS = 4096


@dataclass(frozen=True)
class Moments:
    """Means of h hᵀ and h yᵀ over N tokens: h the activations of I hidden units, y the output wanted of them.

    Memory is that of `gram` whatever N is. Where the FFN has an output bias, the moments are taken about the means,
    which the bias absorbs; where it has none, about zero.

    Args:
        count: Tokens seen, N.
        gram: `[I, I]`, float64.
        cross: `[I, d]`, float64.
        h_mean: `[I]`, float64; zero where the FFN has no output bias.
        y_mean: `[d]`, float64; zero where the FFN has no output bias.
        y_square: Mean of |y - y_mean|² (about zero: of |y|²).
    """

    count: int
    gram: Tensor
    cross: Tensor
    h_mean: Tensor
    y_mean: Tensor
    y_square: float

    @property
    def width(self) -> int:
        """Hidden units, I."""
        return len(self.gram)

    def on(self, device: torch.device | str) -> Moments:
        """The same moments on a device."""
        gram, cross, h_mean, y_mean = (item.to(device) for item in (self.gram, self.cross, self.h_mean, self.y_mean))
        return Moments(self.count, gram, cross, h_mean, y_mean, self.y_square)

    def of_units(self, kept: Tensor) -> Moments:
        """Moments of some of the units.

        Args:
            kept: Indices, `[k]`, int64.
        """
        gram, cross, h_mean = self.gram[kept][:, kept], self.cross[kept], self.h_mean[kept]
        return Moments(self.count, gram, cross, h_mean, self.y_mean, self.y_square)

    def error(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Relative output error of y = weight h + bias, ‖error‖ / ‖y - y_mean‖.

        Args:
            weight: `[d, I]`, float64.
            bias: `[d]`; where there is an output bias and none is given, the best one.
        """
        residual = self.y_square - 2 * (weight.T * self.cross).sum() + (weight @ self.gram * weight).sum()
        if bias is not None:
            residual = residual + (self.y_mean - weight @ self.h_mean - bias.to(weight)).square().sum()
        return float((residual.clamp(min=0) / self.y_square).sqrt()) if self.y_square > 0 else 0.0


class MomentSums:
    """Sums that grow chunk by chunk into `Moments`.

    Args:
        centred: Take the moments about the means (for FFNs with an output bias).
    """

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred
        self.count = 0
        self._sums: list[Tensor] = []
        # Near the means, where the products of centred moments lose no digits; zero where they are about zero.
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, hidden: Tensor, output: Tensor, weights: Tensor | None = None) -> None:
        """Adds tokens.

        Args:
            hidden: Activations, `[n, I]`.
            output: Output wanted, `[n, d]`.
            weights: How much each token's squared error matters, `[n]`; 1 if not given.
        """
        h_all, y_all = hidden.float(), output.float()
        w_all = h_all.new_ones(len(h_all)) if weights is None else weights.float()
        for h, y, w in zip(h_all.split(_TOKENS), y_all.split(_TOKENS), w_all.split(_TOKENS), strict=True):
            self.count += len(h)
            if self.centred:
                self._origin = self._origin or (h.mean(0), y.mean(0))
                h, y = h - self._origin[0], y - self._origin[1]
            h_w, y_w = (h, y) if weights is None else (h * w[:, None], y * w[:, None])
            sums = [h_w.T @ h, h_w.T @ y, h_w.sum(0), y_w.sum(0), (y_w * y).sum(), w.sum()]
            if not self._sums:
                self._sums = [item.double() for item in sums]
            else:
                for total, item in zip(self._sums, sums, strict=True):
                    total += item

    def parts(self, width: int, size: int, origin: tuple[Tensor, Tensor] | None, device: torch.device) -> list[Tensor]:
        """The sums as tensors that may be added to those of others, and put back by `put`.

        Args:
            width: Hidden units, I.
            size: Size of the output, d.
            origin: Where all sums are taken about, `[I]` and `[d]`; None about zero.
            device: Where to, float64.
        """
        if not self.count:
            shapes: list[tuple[int, ...]] = [(width, width), (width, size), (width,), (size,), (), (), ()]
            return [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        gram, cross, h_sum, y_sum, square, total = self._sums
        if self._origin is not None and origin is not None:
            h, y = (mine.double() - other.double() for mine, other in zip(self._origin, origin, strict=True))
            # Σ (h + a)(h + a)ᵀ and its like, with a by how much the origins differ.
            gram = gram + torch.outer(h_sum, h) + torch.outer(h, h_sum) + total * torch.outer(h, h)
            cross = cross + torch.outer(h_sum, y) + torch.outer(h, y_sum) + total * torch.outer(h, y)
            square = square + 2 * y_sum @ y + total * y @ y
            h_sum, y_sum = h_sum + total * h, y_sum + total * y
        count = torch.tensor(float(self.count), dtype=torch.float64, device=device)
        return [item.to(device) for item in (gram, cross, h_sum, y_sum, square, total, count)]

    def put(self, parts: Sequence[Tensor], origin: tuple[Tensor, Tensor] | None) -> None:
        """Takes sums over in the place of its own.

        Args:
            parts: As `parts` gives them, added up.
            origin: What they are taken about.
        """
        *self._sums, count = parts
        self.count, self._origin = int(count), origin

    @property
    def origin(self) -> tuple[Tensor, Tensor] | None:
        """What the sums are taken about, `[I]` and `[d]`, float32; None about zero, or before any token."""
        return self._origin

    def moments(self) -> Moments:
        """The moments of the tokens seen so far.

        Raises:
            ValueError: None was seen.
        """
        if not self.count:
            raise ValueError("no token was seen")
        *sums, total = self._sums
        gram, cross, h_mean, y_mean, y_square = (item / total for item in sums)
        if self.centred:
            gram = gram - torch.outer(h_mean, h_mean)
            cross = cross - torch.outer(h_mean, y_mean)
            y_square = y_square - y_mean @ y_mean
            assert self._origin is not None
            h_mean, y_mean = h_mean + self._origin[0], y_mean + self._origin[1]
        else:
            h_mean, y_mean = torch.zeros_like(h_mean), torch.zeros_like(y_mean)
        return Moments(self.count, gram, cross, h_mean, y_mean, max(float(y_square), 0.0))
