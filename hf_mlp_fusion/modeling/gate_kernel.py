"""Gate, activation and P of experts in one kernel, where the stock block has one for each: P is paid for by the gate.

The kernel is what `torch.compile` makes of `gated` where the user does not compile the model. Nothing of it is in the
state of a model.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["compiles", "gated", "gated_in_one"]

logger = logging.getLogger(__name__)

Activation = Callable[[Tensor], Tensor]


def gated(rows: Tensor, factor: Tensor, inner: Tensor | None, experts: Tensor, activation: Activation) -> Tensor:
    """s2 s3 P ⊙ act(s1 gate) ⊙ up of rows of several experts.

    Args:
        rows: What the gate and up projections gave, gates first, `[rows, 2 k]`.
        factor: s2 s3 P of each expert in the dtype of the rows, `[experts, k]`.
        inner: s1 of each expert in that dtype, `[experts, 1]`; None where all are 1.
        experts: The expert of each row, `[rows]`.
        activation: The activation.

    Returns:
        What the down projection sees, `[rows, k]`.
    """
    gate, up = rows.chunk(2, dim=-1)
    if inner is not None:
        gate = gate * inner.index_select(0, experts)
    return activation(gate) * up * factor.index_select(0, experts)


def gated_in_one(
    rows: Tensor, factor: Tensor, inner: Tensor | None, experts: Tensor, activation: Activation
) -> Tensor:
    """As `gated`, in one kernel, and one for the gradient.

    Args:
        rows: As for `gated`.
        factor: As for `gated`.
        inner: As for `gated`.
        experts: As for `gated`.
        activation: As for `gated`.
    """
    if torch.is_grad_enabled() and rows.requires_grad:
        result: Tensor = _Gated.apply(rows, factor, inner, experts, activation)
        return result
    return _forward(rows, factor, inner, experts, activation)


def compiles(tensor: Tensor) -> bool:
    """Whether the kernel can be made here: not inside of another compilation, trace or transform.

    Args:
        tensor: One that tells the device.
    """
    return (
        tensor.is_cuda
        and type(tensor) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
    )


def _gradient(
    rows: Tensor, factor: Tensor, inner: Tensor | None, experts: Tensor, activation: Activation, outer: Tensor
) -> Tensor:
    """The gradient of the rows, of the result's."""
    pullback: Any = torch.func.vjp(lambda own: gated(own, factor, inner, experts, activation), rows)[1]
    gradient: Tensor = pullback(outer)[0]
    return gradient


class _Compiled:
    """A function of rows that is compiled when it is first called, and stays as it is where that cannot be done.

    Args:
        function: The function; tensors as long as the first have as many rows.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.compiled: Callable[..., Tensor] | None = None

    def __call__(self, rows: Tensor, *args: Any) -> Tensor:
        if self.compiled is None:
            self.compiled = torch.compile(self.function)
        for tensor in (rows, *args):
            if isinstance(tensor, Tensor) and len(tensor) == len(rows):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # else each number of rows would be compiled for
        try:
            return self.compiled(rows, *args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # No end of what torch raises where a compiler is missing. What fails for another reason fails again.
            result = self.function(rows, *args)
            self.compiled = self.function
            _tell(type(error).__name__)
            return result


class _Gated(torch.autograd.Function):
    """`gated` with a gradient of rows alone: P and the scales have none."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, factor: Tensor, inner: Tensor | None, experts: Tensor, activation: Activation
    ) -> Tensor:
        ctx.save_for_backward(rows, factor, inner, experts)
        ctx.activation = activation
        return _forward(rows, factor, inner, experts, activation)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        rows, factor, inner, experts = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient will be asked for, which nothing compiled has
            result = gated(rows, factor, inner, experts, ctx.activation)
            gradient = torch.autograd.grad(result, rows, outer, create_graph=True)[0]
        else:
            gradient = _backward(rows, factor, inner, experts, ctx.activation, outer)
        return gradient, None, None, None, None


_forward = _Compiled(gated)
_backward = _Compiled(_gradient)


@functools.cache
def _tell(error: str) -> None:
    """Says it once."""
    logger.warning("torch.compile does not work here (%s): P of experts takes kernels of its own", error)
