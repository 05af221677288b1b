"""`FFN`: a handle on one FFN of a model, through which weights are read, written and narrowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .families import FFNSpec, family_of
from .modules import ClusterScaling, FusedMLP, fused_mlp_class, narrow_projection
from .reduction import FFNWeights, Fusion

__all__ = ["FFN", "find_ffns"]


@dataclass(frozen=True)
class FFN:
    """One FFN (or expert) of a model, stock or fused.

    Args:
        name: Name of its host module within the base model, the same whatever head the model has.
        prefix: What the full model puts before that name (`"roberta."` or nothing).
        host: The host module.
        spec: Where the parts are.
        stack: `"encoder"`, `"decoder"`, or `""` where a model has one stack.
        layer: Number of its layer in the stack, from 0.
        expert: Number of the expert, from 0, or None in a dense FFN.
    """

    name: str
    prefix: str
    host: nn.Module
    spec: FFNSpec
    stack: str
    layer: int
    expert: int | None

    @property
    def owner(self) -> nn.Module:
        """The module that holds the activation: a `FusedMLP` once fused."""
        return self.host.get_submodule(self.spec.activation.rpartition(".")[0])

    @property
    def is_fused(self) -> bool:
        """Whether fusion has been here."""
        return isinstance(self.owner, FusedMLP)

    @property
    def width(self) -> int:
        """Hidden units it has now."""
        up = self.host.get_submodule(self.spec.up)
        return up.nf if isinstance(up, Conv1D) else int(up.out_features)  # type: ignore[arg-type]

    @property
    def hidden_size(self) -> int:
        """Size of its input, d."""
        up = self.host.get_submodule(self.spec.up)
        return up.nx if isinstance(up, Conv1D) else int(up.in_features)  # type: ignore[arg-type]

    def read(self) -> FFNWeights:
        """The weights, in the layout of `nn.Linear`; views of the model's own tensors where possible."""

        def projection(path: str) -> tuple[Tensor, Tensor | None]:
            module = self.host.get_submodule(path)
            weight: Tensor = module.weight  # type: ignore[assignment]
            bias: Tensor | None = module.bias  # type: ignore[assignment]
            weight = weight.detach().T if isinstance(module, Conv1D) else weight.detach()
            return weight, None if bias is None else bias.detach()

        up, up_bias = projection(self.spec.up)
        down, down_bias = projection(self.spec.down)
        gate, gate_bias = projection(self.spec.gate) if self.spec.gate else (None, None)
        return FFNWeights(up, down, up_bias, gate, gate_bias, down_bias)

    def parameter_names(self) -> list[str]:
        """Names of its parameters in the full model, whatever form it has."""
        return [
            f"{self.prefix}{self.name}.{path}.{name}"
            for path in self._paths()
            for name, _ in self.host.get_submodule(path).named_parameters()
        ]

    def outputs(self, hidden: Tensor) -> Tensor:
        """Runs it by itself: no dropout, no residual, no norm.

        Args:
            hidden: What the up projection sees, `[..., d_in]`.

        Returns:
            What the down projection gives, `[..., d_out]`.
        """
        up, down, activation = map(self.host.get_submodule, (self.spec.up, self.spec.down, self.spec.activation))
        if self.spec.gate is None:
            return down(activation(up(hidden)))
        return down(activation(self.host.get_submodule(self.spec.gate)(hidden)) * up(hidden))

    def hidden(self, inputs: Tensor, weights: FFNWeights) -> Tensor:
        """Runs other hidden units with this FFN's activation, without P.

        Args:
            inputs: What the up projection sees, `[..., d_in]`.
            weights: The units, k of them.

        Returns:
            What the down projection would see, `[..., k]`.
        """
        activation = self.host.get_submodule(self.spec.activation)
        up = nn.functional.linear(inputs, weights.up, weights.up_bias)
        if weights.gate is None:
            return activation(up)
        return activation(nn.functional.linear(inputs, weights.gate, weights.gate_bias)) * up

    def parameter_count(self, width: int) -> int:
        """Parameters that it has with `width` hidden units."""
        weights = self.read()
        return width * weights.unit_size + (0 if weights.down_bias is None else weights.down_bias.numel())

    def replace(self, fusion: Fusion) -> None:
        """Makes this the fused FFN: narrows it, and takes over the fused weights and P.

        Args:
            fusion: The weights, whose dtype and device are those of the present ones, and P.
        """
        trainable = {path: self.host.get_submodule(path).weight.requires_grad for path in self._paths()}
        self.narrow(fusion.weights.width)
        weights = fusion.weights
        parts = {
            self.spec.up: (weights.up, weights.up_bias),
            self.spec.down: (weights.down, weights.down_bias),
        }
        if self.spec.gate is not None and weights.gate is not None:
            parts[self.spec.gate] = (weights.gate, weights.gate_bias)
        for path, (weight, bias) in parts.items():
            module = self.host.get_submodule(path)
            with torch.no_grad():
                module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)  # type: ignore[operator]
                if bias is not None:
                    module.bias.copy_(bias)  # type: ignore[operator]
            module.requires_grad_(trainable[path])  # type: ignore[arg-type]
        self.owner.scaling.cluster_sizes.copy_(fusion.cluster_sizes)  # type: ignore[union-attr, operator]

    def _paths(self) -> tuple[str, ...]:
        return (*self.spec.narrowed, self.spec.down)

    def narrow(self, width: int) -> None:
        """Swaps the projections for narrow ones with new weights, and puts P behind the activation.

        Args:
            width: Units to keep, k.
        """
        original_width = self.width
        for path in self.spec.narrowed:
            self._swap(path, narrow_projection(self.host.get_submodule(path), outputs=width))
        self._swap(self.spec.down, narrow_projection(self.host.get_submodule(self.spec.down), inputs=width))
        with torch.device(self.host.get_submodule(self.spec.up).weight.device):  # type: ignore[arg-type]
            scaling = ClusterScaling(self.host.get_submodule(self.spec.activation), width, original_width)
        self._swap(self.spec.activation, scaling)
        # As torch's parametrizations and FSDP2 do: same module, same children and hooks, a subclass of its own class.
        owner = self.owner
        owner.__class__ = fused_mlp_class(type(owner))

    def _swap(self, path: str, module: nn.Module) -> None:
        parent, _, child = path.rpartition(".")
        setattr(self.host.get_submodule(parent), child, module)


def find_ffns(model: PreTrainedModel) -> Iterator[FFN]:
    """Yields the FFNs of a model in the order of its modules.

    Args:
        model: A stock or fused model of a registered family, with any head.

    Raises:
        UnsupportedModelError: Its family is not registered.
    """
    family = family_of(model.config)
    base = model.base_model
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    patterns = [(spec, re.compile(spec.pattern)) for spec in family.ffns]
    for name, module in base.named_modules():
        for spec, pattern in patterns:
            match = pattern.fullmatch(name)
            if not match or not any(cls.__name__ == spec.host for cls in type(module).__mro__):
                continue
            groups = match.groupdict()
            expert = groups.get("expert")
            yield FFN(
                name=name,
                prefix=prefix,
                host=module,
                spec=spec,
                stack=groups.get("stack") or "",
                layer=int(groups["layer"]),
                expert=None if expert is None else int(expert),
            )
