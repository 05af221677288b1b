"""`FFN`: a handle on one FFN of a model, through which it is read, written, narrowed and watched.

This file alone knows where a spec's projections and activation are in the modules; all else asks the handle. FFNs that
keep their weights in another layout are subclasses, a file each, and lines in `hf_mlp_fusion.modeling.find.LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ..families import FFNSpec
from ..tensors import FFNWeights, LowRankLinear
from .modules import ClusterScaling, FusedMLP, fused_mlp_class, narrow_projection, stock_mlp_class

__all__ = ["FFN"]


@dataclass(frozen=True)
class FFN:
    """One FFN (or expert) of a model, stock or fused, whose projections are modules of their own.

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
    def full_name(self) -> str:
        """Name of its host module within the full model."""
        return f"{self.prefix}{self.name}"

    # Modules

    @property
    def projections(self) -> dict[str, nn.Module]:
        """Its projections by the part that they hold: `"up"`, `"gate"` in gated FFNs, and `"down"`."""
        return {part: self.host.get_submodule(path) for part, path in self.spec.projections.items()}

    @property
    def activation(self) -> nn.Module:
        """The activation: a stock module, or the `ClusterScaling` around it."""
        return self.host.get_submodule(self.spec.activation)

    @property
    def owner(self) -> nn.Module:
        """The module that holds the activation: a `FusedMLP` once fused."""
        return self.host.get_submodule(self.spec.activation.rpartition(".")[0])

    @property
    def exit(self) -> nn.Module:
        """The module whose output is the FFN's: the down projection."""
        return self.projections["down"]

    # Sizes

    @property
    def width(self) -> int:
        """Hidden units it has now."""
        return _sizes(self.projections["up"])[1]

    @property
    def hidden_size(self) -> int:
        """Size of its input, d."""
        return _sizes(self.projections["up"])[0]

    @property
    def output_size(self) -> int:
        """Size of its output."""
        return _sizes(self.projections["down"])[1]

    def parameter_count(self, width: int) -> int:
        """Parameters that it has with `width` hidden units."""
        weights = self.read()
        return width * weights.unit_size + (0 if weights.down_bias is None else weights.down_bias.numel())

    # Weights

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
        return [
            f"{self.full_name}.{path}.{name}"
            for path in self.spec.projections.values()
            for name, _ in self.host.get_submodule(path).named_parameters()
        ]

    def kernel_parts(self) -> dict[str, list[str]]:
        """The parameters whose Adam kernels s1 (`"inner"`) and s2 (`"outer"`) scale, by their names in the full model.

        A bias of the down projection belongs to neither.
        """
        seen = "gate" if "gate" in self.projections else "up"
        inner = f"{self.full_name}.{self.spec.projections[seen]}"
        return {
            "inner": [f"{inner}.{name}" for name, _ in self.projections[seen].named_parameters()],
            "outer": [f"{self.full_name}.{self.spec.projections['down']}.weight"],
        }

    # What it computes

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
    ) -> Iterator[RemovableHandle]:
        """Hooks that hand on what passes through it in a forward.

        Args:
            inputs: Called with what the up projection sees, `[..., d_in]`.
            outputs: Called with what the down projection sees, `[..., k]`, and gives, `[..., d_out]`.

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

    # Forms

    @property
    def is_fused(self) -> bool:
        """Whether fusion has been here."""
        return isinstance(self.owner, FusedMLP)

    @property
    def is_low_rank(self) -> bool:
        """Whether its projections are products of thin matrices."""
        return isinstance(self.projections["up"], LowRankLinear)

    @property
    def scaling(self) -> ClusterScaling | None:
        """What holds P; None where the FFN has none."""
        owner = self.owner
        return owner.scaling if isinstance(owner, FusedMLP) else None

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
            inputs, outputs = _sizes(module)
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
        weight = self.projections["up"].weight
        assert isinstance(weight, Tensor)
        with torch.device(weight.device):
            return ClusterScaling(self.activation, self.width, original_width)

    def put_scaling(self, scaling: ClusterScaling) -> None:
        """Puts P behind the activation of a narrow FFN, whose owner becomes a `FusedMLP`.

        Args:
            scaling: P, around the FFN's activation.
        """
        self._swap(self.spec.activation, scaling)
        # As torch's parametrizations and FSDP2 do: same module, same children and hooks, a subclass of its own class.
        owner = self.owner
        owner.__class__ = fused_mlp_class(type(owner))

    def take_scaling(self) -> ClusterScaling:
        """Takes P out again and leaves a narrow FFN of the stock class.

        Returns:
            What `put_scaling` was given.
        """
        owner = self.owner
        assert isinstance(owner, FusedMLP)
        scaling = owner.scaling
        self._swap(self.spec.activation, scaling.activation)
        owner.__class__ = stock_mlp_class(type(owner))  # type: ignore[assignment]
        return scaling

    def _swap(self, path: str, module: nn.Module) -> None:
        """Puts another module in the place of one of its parts, by the part's path below the host."""
        parent, _, child = path.rpartition(".")
        setattr(self.host.get_submodule(parent), child, module)


def _sizes(projection: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    if isinstance(projection, Conv1D):
        return projection.nx, projection.nf
    return int(projection.in_features), int(projection.out_features)  # type: ignore[arg-type]
