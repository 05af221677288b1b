"""The forms that a reduced FFN can have: how each is built into a model, and how its weights are named there.

A form is one class and one line in `FORMS`. The config section names the form of each FFN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..tensors import FFNWeights, Fusion
from .ffn import FFN

__all__ = [
    "FORMS",
    "Form",
    "FusedForm",
    "LowRankForm",
    "LowRankWeights",
    "NarrowForm",
    "ReducedWeights",
]


@dataclass(frozen=True)
class LowRankWeights:
    """Each projection of an FFN as a product of two thin matrices.

    Args:
        factors: By projection (`"up"`, `"gate"`, `"down"`): A `[r, inputs]`, B `[outputs, r]`, and the bias.
    """

    factors: dict[str, tuple[Tensor, Tensor, Tensor | None]]


ReducedWeights = Fusion | FFNWeights | LowRankWeights
"""What a method makes of an FFN: weights and P, weights of fewer units, or factors."""


class Form(Protocol):
    """A form of FFN."""

    def width(self, weights: ReducedWeights) -> int:
        """Hidden units (or rank) of weights of this form."""

    def power(self, weights: ReducedWeights) -> float:
        """Power of the cluster sizes that P is in weights of this form; 1 where there is no P."""

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """Whether the FFN has this form and width already."""

    def install(self, ffn: FFN, width: int, original_width: int, power: float = 1.0) -> None:
        """Swaps the stock modules of an FFN for those of this form, with new weights; P, if any, is of that power."""

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """The parameters and buffers of the installed FFN that hold these weights, by their names below its host."""

    def scaling_name(self, ffn: FFN) -> str | None:
        """The state dict's name of P, where the form has one."""


class FusedForm:
    """Fewer units with P behind their activation: a `FusedMLP`."""

    def width(self, weights: ReducedWeights) -> int:
        """See `Form`."""
        assert isinstance(weights, Fusion)
        return weights.weights.width

    def power(self, weights: ReducedWeights) -> float:
        """See `Form`."""
        assert isinstance(weights, Fusion)
        return weights.power

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return ffn.is_fused

    def install(self, ffn: FFN, width: int, original_width: int, power: float = 1.0) -> None:
        """See `Form`."""
        ffn.narrow(width)
        scaling = ffn.new_scaling(original_width)
        scaling.power = power
        ffn.put_scaling(scaling)

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """See `Form`."""
        assert isinstance(weights, Fusion)
        return {ffn.spec.scaling_path: weights.cluster_sizes} | ffn.tensors(weights.weights)

    def scaling_name(self, ffn: FFN) -> str:
        """See `Form`."""
        return ffn.scaling_name


class NarrowForm:
    """Fewer units and nothing else: what the baselines that have no P make."""

    def width(self, weights: ReducedWeights) -> int:
        """See `Form`."""
        assert isinstance(weights, FFNWeights)
        return weights.width

    def power(self, weights: ReducedWeights) -> float:
        """See `Form`."""
        return 1.0

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return ffn.width == width

    def install(self, ffn: FFN, width: int, original_width: int, power: float = 1.0) -> None:
        """See `Form`."""
        ffn.narrow(width)

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """See `Form`."""
        assert isinstance(weights, FFNWeights)
        return ffn.tensors(weights)

    def scaling_name(self, ffn: FFN) -> None:
        """See `Form`."""
        return


class LowRankForm:
    """All units, each projection of low rank; the width is the rank."""

    def width(self, weights: ReducedWeights) -> int:
        """See `Form`."""
        assert isinstance(weights, LowRankWeights)
        return weights.factors["up"][0].shape[0]

    def power(self, weights: ReducedWeights) -> float:
        """See `Form`."""
        return 1.0

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return ffn.is_low_rank

    def install(self, ffn: FFN, width: int, original_width: int, power: float = 1.0) -> None:
        """See `Form`."""
        ffn.factorize(width)

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """See `Form`."""
        assert isinstance(weights, LowRankWeights)
        tensors = {}
        for part, (first, second, bias) in weights.factors.items():
            path = ffn.spec.projections[part]
            tensors[f"{path}.first.weight"] = first
            tensors[f"{path}.second.weight"] = second
            if bias is not None:
                tensors[f"{path}.second.bias"] = bias
        return tensors

    def scaling_name(self, ffn: FFN) -> None:
        """See `Form`."""
        return


FORMS: dict[str, Form] = {"fused": FusedForm(), "narrow": NarrowForm(), "low_rank": LowRankForm()}
"""Forms by the name that the config section calls them."""
