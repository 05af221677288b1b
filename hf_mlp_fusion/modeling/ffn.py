"""`FFN`: a handle on one FFN of a model, through which it is read, written, run, watched and changed.

FFNs that keep their weights in another layout are subclasses, a file each, and lines in
`hf_mlp_fusion.modeling.find.LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN

from ..tensors import FFNWeights, LowRankLinear
from .modules import ClusterScaling, FusedMLP, fused_mlp_class, stock_mlp_class, viewed_mlp_class
from .parts import FFNParts, narrow_projection, projection_sizes
from .unit_scaling import UnitScaling

__all__ = ["FFN"]


class FFN(FFNParts):
    """One FFN (or expert) of a model, stock or fused, whose projections are modules of their own."""

    forms: ClassVar[tuple[str, ...]] = ("fused", "narrow", "low_rank")
    """The forms that it can have (`hf_mlp_fusion.modeling.forms.FORMS`)."""

    def activation(self, inputs: Tensor) -> Tensor:
        """The activation, and P behind it in a fused FFN.

        Args:
            inputs: What the activation sees, `[..., k]`.
        """
        if self.spec.activation is not None:
            return self.host.get_submodule(self.spec.activation)(inputs)
        hidden = ACT2FN[self.spec.function](inputs)
        return hidden if self.holder is None else self.holder(hidden)

    def outputs(self, hidden: Tensor) -> Tensor:
        """Runs it by itself: no dropout, no residual, no norm.

        Args:
            hidden: What the up projection sees, `[..., d_in]`.

        Returns:
            What the down projection gives, `[..., d_out]`.
        """
        parts = self.projections
        if "gate" not in parts:
            return parts["down"](self.activation(parts["up"](hidden)))
        return parts["down"](self.activation(parts["gate"](hidden)) * parts["up"](hidden))

    def hidden(self, inputs: Tensor, weights: FFNWeights) -> Tensor:
        """Runs other hidden units with this FFN's activation, without P.

        Args:
            inputs: What the up projection sees, `[..., d_in]`.
            weights: The units, k of them.

        Returns:
            What the down projection would see, `[..., k]`.
        """
        up = nn.functional.linear(inputs, weights.up, weights.up_bias)
        if weights.gate is None:
            return self.activation(up)
        return self.activation(nn.functional.linear(inputs, weights.gate, weights.gate_bias)) * up

    def watch(
        self,
        inputs: Callable[[Tensor], None] | None = None,
        outputs: Callable[[Tensor, Tensor], None] | None = None,
        gates: Callable[[Tensor], None] | None = None,
    ) -> Iterator[RemovableHandle]:
        """Hooks that hand on what passes through it in a forward.

        Args:
            inputs: Called with what the up projection sees, `[..., d_in]`.
            outputs: Called with what the down projection sees, `[..., k]`, and gives, `[..., d_out]`.
            gates: Called before them with what the router multiplies its output by, `[tokens]`, where it is an expert
                of a stack; others do not know that.

        Yields:
            The handles of the hooks.
        """
        if inputs is not None:
            yield self.projections["up"].register_forward_pre_hook(lambda _, arguments: inputs(arguments[0]))
        if outputs is not None:
            yield self.exit.register_forward_hook(lambda _, arguments, output: outputs(arguments[0], output))

    def multiply_units(self, factor: Tensor) -> RemovableHandle:
        """A hook that multiplies what the down projection sees by one number a unit.

        Args:
            factor: The numbers, `[k]`.
        """
        return self.exit.register_forward_pre_hook(lambda _, arguments: (arguments[0] * factor, *arguments[1:]))

    @property
    def is_fused(self) -> bool:
        """Whether fusion has been here."""
        return isinstance(self.owner, FusedMLP)

    @property
    def is_low_rank(self) -> bool:
        """Whether its projections are products of thin matrices."""
        return isinstance(self.projections["up"], LowRankLinear)

    @property
    def holder(self) -> ClusterScaling | None:
        """The module that holds P, of a stack that of all experts; None where the FFN has none."""
        owner = self.owner
        return owner.scaling if isinstance(owner, FusedMLP) else None

    @property
    def scaling(self) -> UnitScaling | None:
        """Its P and its scales; None where the FFN has none."""
        holder = self.holder
        return None if holder is None else self.part_of(holder)

    def part_of(self, holder: ClusterScaling) -> UnitScaling:
        """What a module that holds P holds of this FFN.

        Args:
            holder: As `holder` or `take_scaling` gives it.
        """
        return holder

    @staticmethod
    def joined(tensors: Sequence[Tensor]) -> Tensor:
        """What the FFNs that share a parameter have of it (`tensors`), as the parameter has it: one alone has it all.

        Args:
            tensors: Of each of them.
        """
        return tensors[0]

    @property
    def scaling_name(self) -> str:
        """The state dict's name of P, where the FFN has one."""
        return f"{self.full_name}.{self.spec.scaling_path}"

    def narrow(self, width: int) -> None:
        """Swaps the projections for narrow ones with new weights.

        Args:
            width: Units to keep, k.
        """
        for part, module in self.projections.items():
            sizes = {"inputs": width} if part == "down" else {"outputs": width * self.spec.rows_per_unit(part)}
            self._swap(self.spec.projections[part], narrow_projection(module, **sizes))

    def factorize(self, rank: int) -> None:
        """Swaps each projection for two thin ones with new weights.

        Args:
            rank: Rank of the products.
        """
        for part, module in self.projections.items():
            inputs, outputs = projection_sizes(module)
            weight = module.weight
            assert isinstance(weight, Tensor)
            bias = module.bias is not None
            thin = LowRankLinear(inputs, outputs, rank, bias=bias, device=weight.device, dtype=weight.dtype)
            self._swap(self.spec.projections[part], thin)

    def new_scaling(self, original_width: int) -> ClusterScaling:
        """A P for it as it is now, of even cluster sizes; `put_scaling` puts it in its place.

        Args:
            original_width: Units that it had before fusion, I.
        """
        path = self.spec.activation
        weight = self.projections["up"].weight
        assert isinstance(weight, Tensor)
        with torch.device(weight.device):
            activation = nn.Identity() if path is None else self.host.get_submodule(path)
            return ClusterScaling(activation, self.width, original_width)

    def put_scaling(self, scaling: ClusterScaling) -> None:
        """Puts P behind the activation of a narrow FFN, whose owner becomes a `FusedMLP`.

        Args:
            scaling: P, around the FFN's activation.
        """
        self._swap(self.spec.scaling, scaling)
        # As torch's parametrizations and FSDP2 do: same module, same children and hooks, a subclass of its own class.
        owner = self.owner
        if self.spec.activation is None:
            owner.__class__ = viewed_mlp_class(type(owner))
            owner.scaled_child = self.spec.down.rpartition(".")[2]  # type: ignore[assignment]
        else:
            owner.__class__ = fused_mlp_class(type(owner))

    def take_scaling(self) -> ClusterScaling:
        """Takes P out again and leaves a narrow FFN of the stock class.

        Returns:
            What `put_scaling` was given.
        """
        owner = self.owner
        assert isinstance(owner, FusedMLP)
        scaling = owner.scaling
        if self.spec.activation is None:
            del owner.scaled_child
            delattr(owner, self.spec.scaling.rpartition(".")[2])
        else:
            self._swap(self.spec.activation, scaling.activation)
        owner.__class__ = stock_mlp_class(type(owner))  # type: ignore[assignment]
        return scaling

    def _swap(self, path: str, module: nn.Module) -> None:
        """Puts another module in the place of one of its parts, by the part's path below the host."""
        parent, _, child = path.rpartition(".")
        setattr(self.host.get_submodule(parent), child, module)
