"""The forms that a reduced FFN can have: how each is built into a model, and how its weights are named there.

A form is one class and one line in `FORMS`. The config section names the form of each FFN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .ffn import FFN
from .low_rank import LowRankLinear
from .modules import ClusterScaling, FusedMLP, fused_mlp_class, stock_mlp_class
from .reduction import FFNWeights, Fusion

__all__ = [
    "FORMS",
    "Form",
    "FusedForm",
    "LowRankForm",
    "LowRankWeights",
    "NarrowForm",
    "ReducedWeights",
    "install_scaling",
    "remove_scaling",
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

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """Whether the FFN has this form and width already."""

    def install(self, ffn: FFN, width: int, original_width: int) -> None:
        """Swaps the stock modules of an FFN for those of this form, with new weights."""

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

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return ffn.is_fused

    def install(self, ffn: FFN, width: int, original_width: int) -> None:
        """See `Form`."""
        ffn.narrow(width)
        with torch.device(ffn.host.get_submodule(ffn.spec.up).weight.device):  # type: ignore[arg-type]
            scaling = ClusterScaling(ffn.host.get_submodule(ffn.spec.activation), width, original_width)
        install_scaling(ffn, scaling)

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """See `Form`."""
        assert isinstance(weights, Fusion)
        sizes = {f"{ffn.spec.activation}.cluster_sizes": weights.cluster_sizes}
        return sizes | ffn.tensors(weights.weights)

    def scaling_name(self, ffn: FFN) -> str:
        """See `Form`."""
        return f"{ffn.prefix}{ffn.name}.{ffn.spec.activation}.cluster_sizes"


def install_scaling(ffn: FFN, scaling: ClusterScaling) -> None:
    """Puts P behind the activation of a narrow FFN, which becomes a `FusedMLP`.

    Args:
        ffn: The FFN.
        scaling: P, around the FFN's activation.
    """
    ffn.swap(ffn.spec.activation, scaling)
    # As torch's parametrizations and FSDP2 do: same module, same children and hooks, a subclass of its own class.
    owner = ffn.owner
    owner.__class__ = fused_mlp_class(type(owner))


def remove_scaling(ffn: FFN) -> ClusterScaling:
    """Takes P out again and leaves a narrow FFN of the stock class.

    Args:
        ffn: A fused FFN.

    Returns:
        What `install_scaling` was given.
    """
    owner = ffn.owner
    assert isinstance(owner, FusedMLP)
    scaling = owner.scaling
    ffn.swap(ffn.spec.activation, scaling.activation)
    owner.__class__ = stock_mlp_class(type(owner))  # type: ignore[assignment]
    return scaling


class NarrowForm:
    """Fewer units and nothing else: what the baselines that have no P make."""

    def width(self, weights: ReducedWeights) -> int:
        """See `Form`."""
        assert isinstance(weights, FFNWeights)
        return weights.width

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return ffn.width == width

    def install(self, ffn: FFN, width: int, original_width: int) -> None:
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

    def is_installed(self, ffn: FFN, width: int) -> bool:
        """See `Form`."""
        return isinstance(ffn.host.get_submodule(ffn.spec.up), LowRankLinear)

    def install(self, ffn: FFN, width: int, original_width: int) -> None:
        """See `Form`."""
        sizes = dict.fromkeys(ffn.spec.narrowed, (ffn.hidden_size, original_width))
        sizes[ffn.spec.down] = (original_width, ffn.output_size)
        for path, (inputs, outputs) in sizes.items():
            stock = ffn.host.get_submodule(path)
            weight = stock.weight
            assert isinstance(weight, Tensor)
            bias = stock.bias is not None
            thin = LowRankLinear(inputs, outputs, width, bias=bias, device=weight.device, dtype=weight.dtype)
            ffn.swap(path, thin)

    def tensors(self, ffn: FFN, weights: ReducedWeights) -> dict[str, Tensor]:
        """See `Form`."""
        assert isinstance(weights, LowRankWeights)
        paths = {"up": ffn.spec.up, "gate": ffn.spec.gate, "down": ffn.spec.down}
        tensors = {}
        for part, (first, second, bias) in weights.factors.items():
            tensors[f"{paths[part]}.first.weight"] = first
            tensors[f"{paths[part]}.second.weight"] = second
            if bias is not None:
                tensors[f"{paths[part]}.second.bias"] = bias
        return tensors

    def scaling_name(self, ffn: FFN) -> None:
        """See `Form`."""
        return


FORMS: dict[str, Form] = {"fused": FusedForm(), "narrow": NarrowForm(), "low_rank": LowRankForm()}
"""Forms by the name that the config section calls them."""
