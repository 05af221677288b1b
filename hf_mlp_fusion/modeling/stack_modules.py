"""The modules of a fused stack of experts: `StackScaling` (P of each expert) and `StackedMLP`.

A stack keeps its experts as 3-D parameters. How they lie in them, its module says of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from ..tensors import even_cluster_sizes
from .expert_places import PLACES, cheapest_place
from .modules import ClusterScaling, FusedMLP, View, made_class, stock_mlp_class
from .unit_scaling import ExpertScaling

__all__ = ["StackScaling", "StackShape", "StackedMLP", "stacked_mlp_class"]


@dataclass(frozen=True)
class StackShape:
    """How the 3-D parameters of a stack hold its experts.

    Args:
        up: Name of the parameter that holds the up projections, and the gates where there are some.
        transposed: Whether an expert's weights are `[inputs, outputs]`, not `[outputs, inputs]` as in `nn.Linear`.
        gated: Whether `up` holds gates too.
        halves: Whether it holds all gate units of an expert first, and not gate and up in turn.
        plain_gate: Whether a unit is act(gate) · up: its output is linear in the up projection.
    """

    up: str
    transposed: bool
    gated: bool
    halves: bool
    plain_gate: bool

    @classmethod
    def of(cls, host: nn.Module, up: str, down: str) -> StackShape:
        """Reads it off the module.

        Args:
            host: The module that holds the parameters.
            up: Name of the parameter of the up projections.
            down: Name of that of the down projections.
        """
        gated = bool(getattr(host, "has_gate", True))
        transposed = getattr(host, "is_transposed", None)
        if transposed is None:  # Llama 4 does not say: the outputs of one are the inputs of the other
            first, second = getattr(host, up).shape, getattr(host, down).shape
            transposed = first[2] == second[1] * (2 if gated else 1) and first[1] == second[2]
        # Classes without a gate function of their own get one by `use_experts_implementation`.
        gate = getattr(type(host), "_apply_gate", None)
        plain = gate is None or gate.__module__ == use_experts_implementation.__module__
        return cls(up, bool(transposed), gated, bool(getattr(host, "is_concatenated", True)), plain)

    def units(self, values: Tensor) -> Tensor:
        """Numbers of each unit, `[experts, k]`, shaped to multiply a down projection."""
        return values[:, :, None] if self.transposed else values[:, None, :]


class StackScaling(ClusterScaling):
    """P of each expert of a stack, one row an expert.

    Args:
        experts: Number of experts.
        width: Units of each fused expert, k.
        original_width: Units of each before fusion, I.

    Attributes:
        expert_scales: (s1, s2, s3) of each expert.
        has_inner: Whether an expert has an s1.
        has_outer: Whether an expert has an s2 or s3.

    Shape:
        `cluster_sizes` `[experts, k]`, int32.
    """

    def __init__(self, experts: int, width: int, original_width: int) -> None:
        super().__init__(nn.Identity(), width, original_width)
        self.cluster_sizes = even_cluster_sizes(width, original_width).repeat(experts, 1)
        self.expert_scales = [(1.0, 1.0, 1.0)] * experts
        self.keep_scales()

    def keep_scales(self) -> None:
        """As of one FFN; what was made of the scales, which may have changed, is forgotten."""
        super().keep_scales()
        self.has_inner = any(inner != 1.0 for inner, _, _ in self.expert_scales)
        self.has_outer = any(outer * value != 1.0 for _, outer, value in self.expert_scales)
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._cast: tuple[Tensor, int, tuple[Tensor, Tensor | None]] | None = None

    def of(self, expert: int) -> ExpertScaling:
        """P of one expert.

        Args:
            expert: Its number.
        """
        return ExpertScaling(self, expert)

    @property
    def factor(self) -> Tensor:
        """s2 s3 P of each expert, `[experts, k]`."""
        return self.diagonal * self._by_device()[1] if self.has_outer else self.diagonal

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """`factor` and `inner` in a dtype: by a call, before which accelerate's hooks place what was offloaded.

        They are kept, for to make them anew for each forward is some kernels more.

        Args:
            dtype: The dtype.
        """
        sizes = self.cluster_sizes
        if torch.compiler.is_compiling() or sizes.is_inference():
            return self._in(dtype)
        kept = self._cast
        if kept is None or kept[0] is not sizes or kept[1] != sizes._version or kept[2][0].dtype != dtype:
            self._cast = kept = (sizes, sizes._version, self._in(dtype))
        return kept[2]

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        inner = self.inner
        return self.factor.to(dtype), None if inner is None else inner.to(dtype)

    @property
    def inner(self) -> Tensor | None:
        """s1 of each expert, `[experts, 1]`; None where all are 1."""
        return self._by_device()[0] if self.has_inner else None

    @property
    def scales(self) -> tuple[Any, ...]:
        """The scales of each expert, as `UnitScaling` has one's; can be set."""
        return tuple(self.of(expert).scales for expert in range(len(self.expert_scales)))

    @scales.setter
    def scales(self, scales: Sequence[Any]) -> None:
        """Sets the scales of each expert."""
        for expert, values in enumerate(scales):
            self.of(expert).scales = values

    @property
    def is_identity(self) -> bool:
        """Whether nothing is multiplied: all is in the weights."""
        return self.power == 0.0 and not self.has_inner and not self.has_outer

    @property
    def every_scale(self) -> Sequence[Any]:
        """s1, s2 and s3 of each expert, and behind them the power where it is not 1."""
        return self.expert_scales if self.power == 1.0 else [(*scales, self.power) for scales in self.expert_scales]

    @property
    def kept_scales(self) -> tuple[Any, ...] | None:
        """What the config section keeps of its scales; None where there is nothing to keep."""
        return None if set(self.expert_scales) == {(1.0, 1.0, 1.0)} else self.scales

    def _by_device(self) -> tuple[Tensor, Tensor]:
        """s1 of all experts, and s2 s3 of all, `[experts, 1]`, made when they are needed."""
        device = self.cluster_sizes.device
        if device not in self._tensors:
            inner = [[inner] for inner, _, _ in self.expert_scales]
            outer = [[outer * value] for _, outer, value in self.expert_scales]
            self._tensors[device] = torch.tensor(inner, device=device), torch.tensor(outer, device=device)
        return self._tensors[device]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tensors": {}, "_cast": None}


class StackedMLP(FusedMLP):
    """A fused stack of experts: the stock forward, whatever implementation it takes, runs on a view that has P.

    P stands where it costs least: behind the activations, or in the weights of the down projections
    (`hf_mlp_fusion.modeling.expert_places`).

    Attributes:
        stack_shape: How the parameters hold the experts.
    """

    stack_shape: StackShape

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock class's."""
        stock = stock_mlp_class(type(self))
        if self.scaling.is_identity:
            return stock.forward(self, *args, **kwargs)
        implementation = getattr(getattr(self, "config", None), "_experts_implementation", None)
        index = args[1] if len(args) > 1 else kwargs.get("top_k_index")
        place = cheapest_place(self, implementation, index)
        view = View(self, PLACES[place](self, implementation))
        return stock.forward(view, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty_stacked_mlp, (stock_mlp_class(type(self)),), self.__dict__


def stacked_mlp_class(stock: type[nn.Module]) -> type[FusedMLP]:
    """Returns the subclass of `StackedMLP` and a stock class, always the same one.

    Args:
        stock: Class of the module that holds the parameters, such as `MixtralExperts`.
    """
    return made_class(StackedMLP, stock)


def _empty_stacked_mlp(stock: type[nn.Module]) -> FusedMLP:
    stacked = stacked_mlp_class(stock)
    return stacked.__new__(stacked)
