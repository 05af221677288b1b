"""Where P of a stack of experts stands while the stock forward runs, and which place is cheapest.

A place is what a view of the stack has instead of the stack's own attributes (`hf_mlp_fusion.modeling.modules.View`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gate_kernel import compiles, gated, gated_in_one
from .modules import stock_mlp_class

__all__ = ["PLACES", "cheapest_place"]

_KERNEL_PAYS = 2**22
"""Numbers behind the gate from which on one kernel saves a GPU more time than calling it takes."""


def cheapest_place(stack: Any, implementation: str | None, index: Tensor | None) -> str:
    """Chooses where P stands, by what was measured (docs/experts.md).

    Args:
        stack: The stack.
        implementation: How its experts are run: `"eager"`, `"batched_mm"`, `"grouped_mm"` or another.
        index: The experts of each token, `[tokens, k]`; None where the stack is not told.

    Returns:
        A key of `PLACES`.
    """
    if index is None or not hasattr(stack, "has_gate") or getattr(stack, "_is_expert_parallel", False):
        return "weights"  # which every forward honours
    if implementation == "eager":
        return "each"
    if implementation == "batched_mm":
        return "activations"
    if implementation != "grouped_mm":
        return "weights"
    if torch.compiler.is_compiling():
        return "activations"
    shape, down = stack.stack_shape, stack.down_proj
    experts, width, size = down.shape if shape.transposed else (down.shape[0], down.shape[2], down.shape[1])
    if index.numel() * width >= _KERNEL_PAYS and shape.gated and shape.plain_gate and compiles(index):
        return "kernel"
    return "activations" if 6 * index.numel() <= experts * size else "weights"


def _in_weights(stack: Any, implementation: str | None) -> dict[str, Any]:
    """P and s1 in the weights of all experts, made anew for each forward."""
    return _scaled_weights(stack, _Scaled.whole)


def _in_each(stack: Any, implementation: str | None) -> dict[str, Any]:
    """P and s1 in the weights of the experts that the forward asks for."""
    return _scaled_weights(stack, _Scaled)


def _behind_activations(stack: Any, implementation: str | None) -> dict[str, Any]:
    """P behind the activation of each row, and s1 before it."""
    return _at_activations(stack, implementation, gated)


def _in_gate_kernel(stack: Any, implementation: str | None) -> dict[str, Any]:
    """The same in one kernel with the gate, which is a plain one."""
    return _at_activations(stack, implementation, gated_in_one)


PLACES: dict[str, Callable[[Any, str | None], dict[str, Any]]] = {
    "weights": _in_weights,
    "each": _in_each,
    "activations": _behind_activations,
    "kernel": _in_gate_kernel,
}
"""What a view of a stack has in the place of the stack's own, by place; from the stack and its implementation."""


def _at_activations(stack: Any, implementation: str | None, gate: Callable[..., Tensor]) -> dict[str, Any]:
    shape, scaling = stack.stack_shape, stack.scaling
    activation = getattr(stack, "act_fn", None)
    if implementation == "eager":
        heard = _Heard(getattr(stack, shape.up))
        replaced: dict[str, Any] = {shape.up: heard}
    else:
        # Both implementations ask for the bias of each row, if there is one, and so tell which expert the row is of.
        bias = f"{shape.up}_bias"
        heard = _Heard(getattr(stack, bias, None))
        replaced = {bias: heard}
        if not stack.has_bias:
            replaced |= {"has_bias": True, "down_proj_bias": heard}

    def own_gate(rows: Tensor) -> Tensor:  # which has no s1
        stock: Any = stock_mlp_class(type(stack))
        hidden: Tensor = stock._apply_gate(stack, rows)
        return hidden * scaling(hidden.dtype)[0].index_select(0, heard.experts)

    def ungated(rows: Tensor) -> Tensor:
        factor, inner = scaling(rows.dtype)
        if inner is not None:
            rows = rows * inner.index_select(0, heard.experts)
        hidden: Tensor = activation(rows)  # type: ignore[misc]
        return hidden * factor.index_select(0, heard.experts)

    def plain_gate(rows: Tensor) -> Tensor:
        return gate(rows, *scaling(rows.dtype), heard.experts, activation)

    if not shape.plain_gate:
        replaced["_apply_gate"] = own_gate
    elif implementation == "eager" or not shape.gated:
        replaced["act_fn"] = ungated
    else:
        replaced["_apply_gate"] = plain_gate
    return replaced


def _scaled_weights(stack: Any, scaled: Callable[[Tensor, Tensor], Any]) -> dict[str, Any]:
    shape = stack.stack_shape
    down = stack.down_proj  # as an adapter of it has it
    factor, inner = stack.scaling(down.dtype)
    replaced = {"down_proj": scaled(down, shape.units(factor))}
    if inner is None:
        return replaced
    up = getattr(stack, shape.up)
    count = up.shape[2 if shape.transposed else 1]
    rows = inner.expand(-1, count).clone()  # of gates alone, where there are some: all first
    if shape.gated:
        rows[:, count // 2 :] = 1.0
    replaced[shape.up] = scaled(up, rows[:, None, :] if shape.transposed else rows[:, :, None])
    if hasattr(stack, f"{shape.up}_bias"):
        replaced[f"{shape.up}_bias"] = scaled(getattr(stack, f"{shape.up}_bias"), rows)
    return replaced


class _Heard:
    """A parameter of a stack, or none, that notes for which experts it is asked.

    Args:
        parameter: The parameter; None where there is none, and None is the answer.

    Attributes:
        experts: Numbers of the experts that were asked for last.
    """

    experts: Tensor

    def __init__(self, parameter: Tensor | None) -> None:
        self.parameter = parameter

    def __getitem__(self, experts: Tensor) -> Tensor | None:
        self.experts = experts
        return None if self.parameter is None else self.parameter[experts]


class _Scaled:
    """A parameter of a stack times numbers: of the experts that are asked for, when they are."""

    def __init__(self, parameter: Tensor, factor: Tensor) -> None:
        self.parameter, self.factor = parameter, factor.to(parameter.dtype)

    def __getitem__(self, experts: Tensor | int) -> Tensor:
        if isinstance(experts, Tensor) and not experts.dim():
            experts = int(
                experts
            )  # which indexing would do for the parameter and for the factor: each waits for a GPU
        return self.parameter[experts] * self.factor[experts]

    @staticmethod
    def whole(parameter: Tensor, factor: Tensor) -> Tensor:
        """Of all experts, now."""
        return parameter * factor.to(parameter.dtype)
