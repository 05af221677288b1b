"""Where an FFN's parts are in a model, and its weights.

This file and `ffn.py` alone know what a spec's paths lead to; all else asks the handle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..families import FFNSpec
from ..tensors import FFNWeights
from .rows import Rows

__all__ = ["FFNParts", "narrow_projection", "projection_sizes"]


@dataclass(frozen=True)
class FFNParts:
    """The parts of one FFN (or expert) of a model, stock or fused, whose projections are modules of their own.

    Args:
        name: Name of its host module within the base model, the same whatever head the model has.
        prefix: What the full model puts before that name (`"roberta."` or nothing).
        host: The host module.
        spec: Where the parts are.
        stack: `"encoder"`, `"decoder"`, or `""` where a model has one stack.
        layer: Number of its layer in the stack, from 0.
        expert: Number of the expert, from 0, or None in a dense FFN.
        wrapper: What PEFT has wrapped around the host, for an adapter of its parameters.
    """

    name: str
    prefix: str
    host: nn.Module
    spec: FFNSpec
    stack: str
    layer: int
    expert: int | None
    wrapper: nn.Module | None = None

    @property
    def full_name(self) -> str:
        """Name of its host module within the full model."""
        return f"{self.prefix}{self.name}"

    @property
    def entry(self) -> str:
        """Name of its entry in the config section: its own, or that of the stack that it is in."""
        return self.name

    @property
    def block(self) -> str:
        """Name within the full model of the module whose output is that of all experts together, for an expert."""
        return f"{self.prefix}{self.name}".rsplit(".", 2)[0]  # above `experts.expert_0`

    @property
    def projections(self) -> dict[str, nn.Module]:
        """Its projections by the part that they hold: `"up"`, `"gate"` in gated FFNs, and `"down"`."""
        return {part: self.host.get_submodule(path) for part, path in self.spec.projections.items()}

    @property
    def owner(self) -> nn.Module:
        """The module that holds the activation, or the down projection: a `FusedMLP` once fused."""
        return self.host.get_submodule(self.spec.owner)

    @property
    def exit(self) -> nn.Module:
        """The module whose output is the FFN's: the down projection."""
        return self.projections["down"]

    @property
    def width(self) -> int:
        """Hidden units it has now."""
        return projection_sizes(self.projections["up"])[1]

    @property
    def hidden_size(self) -> int:
        """Size of its input, d."""
        return projection_sizes(self.projections["up"])[0]

    @property
    def output_size(self) -> int:
        """Size of its output."""
        return projection_sizes(self.projections["down"])[1]

    def parameter_count(self, width: int) -> int:
        """Parameters that it has with `width` hidden units."""
        weights = self.read()
        return width * weights.unit_size + (0 if weights.down_bias is None else weights.down_bias.numel())

    def read(self) -> FFNWeights:
        """The weights, in the layout of `nn.Linear`; views of the model's own tensors where possible."""
        found: dict[str, Tensor | None] = {}
        for part, module in self.projections.items():
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            found[part] = weight.detach().T if isinstance(module, Conv1D) else weight.detach()
            found[f"{part}_bias"] = bias.detach() if isinstance(bias, Tensor) else None
        return FFNWeights(**found)  # type: ignore[arg-type]

    def tensors(self, weights: FFNWeights) -> dict[str, Tensor]:
        """Weights as the parameters of its projections hold them, by their names below the host.

        Args:
            weights: The weights; or numbers for them, shaped so that they broadcast (`up` `[k, 1]`, `down` `[1, k]`).
        """
        tensors = {}
        for part, path in self.spec.projections.items():
            weight, bias = getattr(weights, part), getattr(weights, f"{part}_bias")
            tensors[f"{path}.weight"] = weight.T if isinstance(self.projections[part], Conv1D) else weight
            if bias is not None:
                tensors[f"{path}.bias"] = bias
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values into its parameters and buffers.

        Args:
            tensors: The values, by their names below the host.
        """
        state = self.host.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)

    def parameter_names(self) -> list[str]:
        """Names of its parameters in the full model, whatever form it has."""
        return [name for part in self.projections for name in self._names(part)]

    def parameter_items(self) -> list[str | Rows]:
        """Its stored weights: names of parameters, or what it has of them."""
        return [*self.parameter_names()]

    def trainable(self) -> dict[str, bool]:
        """Which of its weights train, by what they are."""
        return {part: bool(module.weight.requires_grad) for part, module in self.projections.items()}

    def set_trainable(self, trainable: Mapping[str, bool]) -> None:
        """Lets weights train or not.

        Args:
            trainable: What `trainable` returned, before it got another form.
        """
        for part, module in self.projections.items():
            module.requires_grad_(trainable[part])

    def kernel_parts(self) -> dict[str, list[str | Rows]]:
        """The parameters whose Adam kernels can be given another size: what s1, s2 and s3 scale.

        Returns:
            `"inner"`, what the activation sees (without it where that is a function of the stock forward, which no
            number reaches); `"value"`, the up projection beside a gate; `"outer"`, the down projection without its
            bias, which belongs to none.
        """
        parts = {"inner": "gate", "value": "up"} if "gate" in self.projections else {"inner": "up"}
        if self.spec.activation is None:
            del parts["inner"]
        found: dict[str, list[str | Rows]] = {name: [*self._names(part)] for name, part in parts.items()}
        found["outer"] = [*self._names("down")[:1]]
        return found

    def _names(self, part: str) -> list[str]:
        """Names of a projection's weight, and of its bias where it has one, in the full model."""
        path = f"{self.full_name}.{self.spec.projections[part]}"
        return [f"{path}.{name}" for name, _ in self.projections[part].named_parameters()]


def projection_sizes(projection: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection.

    Args:
        projection: An `nn.Linear`, a `Conv1D`, or what has `in_features` and `out_features` like the first.
    """
    if isinstance(projection, Conv1D):
        return projection.nx, projection.nf
    return int(projection.in_features), int(projection.out_features)  # type: ignore[arg-type]


def narrow_projection(projection: nn.Module, *, inputs: int | None = None, outputs: int | None = None) -> nn.Module:
    """Builds a projection with another number of inputs or outputs, with new weights of the same dtype and device.

    Args:
        projection: An `nn.Linear` or GPT-2's `Conv1D`.
        inputs: Number of inputs, as before if not given.
        outputs: Number of outputs, as before if not given.
    """
    weight = projection.weight
    assert isinstance(weight, Tensor)
    if isinstance(projection, Conv1D):
        with torch.device(weight.device):
            return Conv1D(outputs or projection.nf, inputs or projection.nx).to(weight.dtype)
    assert isinstance(projection, nn.Linear)
    return nn.Linear(
        inputs or projection.in_features,
        outputs or projection.out_features,
        bias=projection.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
