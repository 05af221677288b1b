"""`FFN`: a handle on one FFN of a model, through which weights are read, written and narrowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .families import FFNSpec, family_of
from .modules import FusedMLP, narrow_projection
from .reduction import FFNWeights

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

    @property
    def output_size(self) -> int:
        """Size of its output."""
        down = self.host.get_submodule(self.spec.down)
        return down.nf if isinstance(down, Conv1D) else int(down.out_features)  # type: ignore[arg-type]

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
            for path in self.paths
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

    def tensors(self, weights: FFNWeights) -> dict[str, Tensor]:
        """Weights as the parameters of its projections hold them, by their names below the host."""
        parts: list[tuple[str | None, Tensor | None, Tensor | None]] = [
            (self.spec.up, weights.up, weights.up_bias),
            (self.spec.gate, weights.gate, weights.gate_bias),
            (self.spec.down, weights.down, weights.down_bias),
        ]
        tensors = {}
        for path, weight, bias in parts:
            if path is None or weight is None:
                continue
            tensors[f"{path}.weight"] = weight.T if isinstance(self.host.get_submodule(path), Conv1D) else weight
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

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of its projections below the host."""
        return (*self.spec.narrowed, self.spec.down)

    def narrow(self, width: int) -> None:
        """Swaps the projections for narrow ones with new weights.

        Args:
            width: Units to keep, k.
        """
        for path in self.spec.narrowed:
            self.swap(path, narrow_projection(self.host.get_submodule(path), outputs=width))
        self.swap(self.spec.down, narrow_projection(self.host.get_submodule(self.spec.down), inputs=width))

    def swap(self, path: str, module: nn.Module) -> None:
        """Puts another module in the place of one of its parts.

        Args:
            path: Path of the part below the host.
            module: The new module.
        """
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
