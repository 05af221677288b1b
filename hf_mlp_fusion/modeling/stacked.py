"""Experts that are kept as 3-D parameters: a handle each on one host, the stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedModelError
from ..tensors import FFNWeights
from .ffn import FFN
from .modules import ClusterScaling, FusedMLP, stock_mlp_class
from .packed import apart, together
from .rows import Rows
from .stack_modules import StackScaling, StackShape, stacked_mlp_class
from .unit_scaling import ExpertScaling

__all__ = ["StackedFFN"]

_WIDTH_FIELDS = ("intermediate_dim", "intermediate_size", "expert_dim")
"""What modules call the width of their experts, which some forwards read."""


class StackedFFN(FFN):
    """One expert of a stack.

    All experts of a stack have one width and one form: what changes these changes them for all.
    """

    forms: ClassVar[tuple[str, ...]] = ("fused", "narrow")
    """Not `"low_rank"`, which a 3-D parameter has no room for."""

    @property
    def entry(self) -> str:
        """Name of its entry in the config section, that of the stack."""
        return self.name.rpartition(".")[0]

    @property
    def full_name(self) -> str:
        """Name of its host module within the full model."""
        return f"{self.prefix}{self.entry}"

    @property
    def shape(self) -> StackShape:
        """How the parameters hold the experts."""
        return StackShape.of(self.host, self.spec.up, self.spec.down)

    @property
    def number(self) -> int:
        """Number of the expert."""
        assert self.expert is not None
        return self.expert

    @property
    def owner(self) -> nn.Module:
        """The module that holds the parameters: a `StackedMLP` once fused."""
        return self.host

    @property
    def exit(self) -> nn.Module:
        """The stack, whose output is that of all experts together."""
        return self.host

    @property
    def width(self) -> int:
        """Hidden units it has now."""
        return self._parameter("down").shape[1 if self.shape.transposed else 2]

    @property
    def hidden_size(self) -> int:
        """Size of its input, d."""
        return self._parameter("up").shape[1 if self.shape.transposed else 2]

    @property
    def output_size(self) -> int:
        """Size of its output."""
        return self._parameter("down").shape[2 if self.shape.transposed else 1]

    @property
    def is_low_rank(self) -> bool:
        """Never."""
        return False

    def read(self) -> FFNWeights:
        """The weights, in the layout of `nn.Linear`; views of the model's own tensors."""
        shape = self.shape
        found: dict[str, Tensor] = {}
        for part in ("up", "down"):
            weight = self._parameter(part).detach()[self.number]
            found[part] = weight.T if shape.transposed else weight
            if (bias := self._bias(part)) is not None:
                found[f"{part}_bias"] = bias.detach()[self.number]
        if shape.gated:
            for name in ("", "_bias"):
                if f"up{name}" in found:
                    found[f"gate{name}"], found[f"up{name}"] = apart(found[f"up{name}"], halves=shape.halves)
        return FFNWeights(**found)

    def tensors(self, weights: FFNWeights) -> dict[str, Tensor]:
        """Weights as the parameters hold them, of this expert alone, by the parameters' names below the host."""
        shape = self.shape
        up, bias = weights.up, weights.up_bias
        if weights.gate is not None:
            up = together(weights.gate, up, halves=shape.halves)
            if weights.gate_bias is not None and bias is not None:
                bias = together(weights.gate_bias, bias, halves=shape.halves)
        found = {self.spec.up: up, self.spec.down: weights.down}
        if shape.transposed:
            found = {name: weight.T for name, weight in found.items()}
        biases = {f"{self.spec.up}_bias": bias, f"{self.spec.down}_bias": weights.down_bias}
        return found | {name: tensor for name, tensor in biases.items() if tensor is not None}

    @staticmethod
    def joined(tensors: Sequence[Tensor]) -> Tensor:
        """What the experts of a stack have of a parameter, as the parameter has it."""
        return torch.stack([*tensors])

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values into its part of the host's parameters and buffers."""
        state = self.host.state_dict()
        for name, tensor in tensors.items():
            state[name][self.number].copy_(tensor)

    def parameter_names(self) -> list[str]:
        """Names of the parameters of its stack in the full model."""
        return [f"{self.full_name}.{name}" for name, _ in self._whole.named_parameters()]

    def parameter_items(self) -> list[str | Rows]:
        """What it has of them."""
        state = dict(self._whole.named_parameters())
        return [Rows(f"{self.full_name}.{name}", 0, tensor.shape[1], self.number) for name, tensor in state.items()]

    def trainable(self) -> dict[str, bool]:
        """Which parameters of its stack train, by name."""
        return {name: parameter.requires_grad for name, parameter in self.host.named_parameters()}

    def set_trainable(self, trainable: Mapping[str, bool]) -> None:
        """Lets parameters of its stack train or not."""
        for name, parameter in self.host.named_parameters():
            parameter.requires_grad_(trainable[name])

    def kernel_parts(self) -> dict[str, list[str | Rows]]:
        """What s1, s2 and s3 scale: where gate and up rows lie in turn or across, or in no plain product, s2's."""
        shape, width = self.shape, self.width
        down = self._parameter("down")
        outer: list[str | Rows] = [Rows(f"{self.full_name}.{self.spec.down}", 0, down.shape[1], self.number)]
        if shape.transposed or not shape.halves or not shape.plain_gate:
            return {"outer": outer}
        names = [f"{self.full_name}.{self.spec.up}"]
        if self._bias("up") is not None:
            names.append(f"{names[0]}_bias")
        inner: list[str | Rows] = [Rows(name, 0, width, self.number) for name in names]
        if not shape.gated:
            return {"inner": inner, "outer": outer}
        value: list[str | Rows] = [Rows(name, width, 2 * width, self.number) for name in names]
        return {"inner": inner, "value": value, "outer": outer}

    def hidden(self, inputs: Tensor, weights: FFNWeights) -> Tensor:
        """Runs other hidden units with its activation, without P."""
        host: Any = self.host
        up = linear(inputs, weights.up, weights.up_bias)
        if weights.gate is None:
            return host.act_fn(up)
        gate = linear(inputs, weights.gate, weights.gate_bias)
        if not hasattr(host, "_apply_gate"):
            return host.act_fn(gate) * up
        return host._apply_gate(together(gate, up, halves=self.shape.halves, dim=-1))

    def outputs(self, hidden: Tensor) -> Tensor:
        """Runs it by itself: no router, no residual, no norm."""
        weights = self.read()
        return linear(self._seen_by_down(hidden, weights), weights.down, weights.down_bias)

    def watch(
        self,
        inputs: Callable[[Tensor], None] | None = None,
        outputs: Callable[[Tensor, Tensor], None] | None = None,
        gates: Callable[[Tensor], None] | None = None,
    ) -> Iterator[RemovableHandle]:
        """Hooks that hand on the tokens that the router sends it: its own part is computed a second time for them."""

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens, weights = self._routed(*args, *kwargs.values())
            if not len(tokens):
                return
            if gates is not None:
                gates(weights)
            if inputs is not None:
                inputs(tokens)
            if outputs is not None:
                own = self.read()
                hidden = self._seen_by_down(tokens, own)
                outputs(hidden, linear(hidden, own.down, own.down_bias))

        yield self.host.register_forward_pre_hook(see, with_kwargs=True)

    def multiply_units(self, factor: Tensor) -> RemovableHandle:
        """Not possible: no module stands before the down projection."""
        raise UnsupportedModelError(
            f"{self.entry} keeps its experts as 3-D parameters: no gradient of a unit is known"
        )

    def part_of(self, holder: ClusterScaling) -> ExpertScaling:
        """What the stack's P holds of this expert."""
        assert isinstance(holder, StackScaling)
        return holder.of(self.number)

    def narrow(self, width: int) -> None:
        """Swaps the stack's parameters for narrow ones with new weights."""
        shape, old = self.shape, self.width
        new: dict[str, tuple[int, ...]] = {}
        for part, units in (("up", width * self.spec.rows_per_unit("up")), ("down", width)):
            sizes = list(self._parameter(part).shape)
            sizes[2 if (part == "up") == shape.transposed else 1] = units
            new[self.spec.projections[part]] = tuple(sizes)
            if part == "up" and self._bias(part) is not None:
                new[f"{self.spec.up}_bias"] = (sizes[0], units)
        for name, size in new.items():
            like = getattr(self.host, name)
            setattr(self.host, name, nn.Parameter(like.new_empty(size), requires_grad=like.requires_grad))
        for name in _WIDTH_FIELDS:
            if getattr(self.host, name, None) == old:
                setattr(self.host, name, width)

    def new_scaling(self, original_width: int) -> ClusterScaling:
        """A P for its stack as it is now, of even cluster sizes; `put_scaling` puts it in its place."""
        down = self._parameter("down")
        with torch.device(down.device):
            return StackScaling(len(down), self.width, original_width)

    def put_scaling(self, scaling: ClusterScaling) -> None:
        """Puts P into its narrow stack, which becomes a `StackedMLP`."""
        host: Any = self.host
        host.stack_shape = self.shape
        setattr(host, self.spec.scaling, scaling)
        host.__class__ = stacked_mlp_class(type(host))

    def take_scaling(self) -> ClusterScaling:
        """Takes P out of its stack again and leaves a narrow one of the stock class."""
        host: Any = self.host
        scaling: ClusterScaling = host.scaling
        delattr(host, self.spec.scaling)
        del host.stack_shape
        host.__class__ = stock_mlp_class(type(host))
        return scaling

    @property
    def _whole(self) -> nn.Module:
        """The host, with what PEFT has wrapped around it."""
        return self.host if self.wrapper is None else self.wrapper

    def _parameter(self, part: str) -> Tensor:
        """The parameter that holds a part of all experts."""
        return getattr(self.host, self.spec.projections[part])

    def _bias(self, part: str) -> Tensor | None:
        return getattr(self.host, f"{self.spec.projections[part]}_bias", None)

    def _seen_by_down(self, inputs: Tensor, weights: FFNWeights) -> Tensor:
        """What the down projection sees: the units' activations times P."""
        if not isinstance(self.host, FusedMLP):
            return self.hidden(inputs, weights)
        scaling = self.scaling
        assert scaling is not None
        seen = {name: getattr(weights, name) * scaling.inner_scale for name in weights.seen}
        hidden = self.hidden(inputs, replace(weights, **seen))
        return hidden * scaling.factor.to(hidden.dtype)

    def _routed(
        self, tokens: Tensor, index: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The tokens that a forward of the stack sends this expert, and what its output for each is multiplied by."""
        if index is None or weights is None:  # Llama 4: all experts see all tokens, those of others as zeros
            own = tokens.unflatten(0, (len(self._parameter("up")), -1))[self.number]
            own = own[own.any(-1)]
            return own, torch.ones_like(own[:, 0])
        rows, places = torch.where(index == self.number)
        return tokens[rows], weights[rows, places]
