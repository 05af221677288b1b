"""Gradients of a model's scalar output, a row of tokens at a time.

The gradient of a linear map's weight by one row is the sum over the row's tokens of outer(output gradient, input).
These two are small beside it, so those of many maps are kept from one forward and backward a row, and the gradients
are made of them, some columns at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..data import Batch, run_on
from .log_probabilities import LabelScores
from .scalars import scalar_outputs

__all__ = ["LinearMap", "Tokens", "linear_maps", "only_these_train", "parameter_gradients", "token_gradients"]


@dataclass(frozen=True)
class LinearMap:
    """A parameter of a linear map.

    Args:
        module: The map.
        name: `"weight"` or `"bias"`.
    """

    module: nn.Module
    name: str


@dataclass
class Tokens:
    """What a linear map saw of one row in a forward and backward.

    Args:
        inputs: Its inputs, `[tokens, i]` each call.
        gradients: The gradients of its outputs, `[tokens, o]` each call, or None where none arrived.
    """

    inputs: list[Tensor]
    gradients: list[Tensor | None]

    def gradient(self, units: slice, bias: bool) -> Tensor | None:
        """The gradient of the weights, `[units, i]`, or of the biases, `[units]`, of some output units; None if zero.

        Args:
            units: The output units.
            bias: Whether it is that of the biases.
        """
        total: Tensor | None = None
        for inputs, gradients in zip(self.inputs, self.gradients, strict=True):
            if gradients is None:
                continue
            chosen = gradients[:, units]
            # Sums over many tokens want float32 at least, whatever the model computes in.
            wide = torch.promote_types(chosen.dtype, torch.float32)
            part = chosen.to(wide).sum(0) if bias else chosen.to(wide).T @ inputs.to(wide)
            total = part if total is None else total + part
        return total


def linear_maps(model: PreTrainedModel) -> dict[str, LinearMap]:
    """The weights and biases of a model that have the gradients of a linear map, by parameter name.

    A tensor that several modules share (as tied embeddings) has other gradients besides, and is not among them.

    Args:
        model: The model.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        f"{path}.{name}": LinearMap(module, name)
        for path, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D)  # a subclass may compute something else
        for name, parameter in module.named_parameters(recurse=False)
        if owners[id(parameter)] == 1
    }


def token_gradients(
    model: PreTrainedModel, rows: Sequence[Batch], modules: Sequence[nn.Module], done: Callable[[], Any]
) -> dict[nn.Module, list[Tokens]]:
    """Runs a forward and a backward of each row, and keeps what linear maps saw.

    Args:
        model: The model, in the mode it is to be measured in.
        rows: Batches of one row, on the model's device, without padding.
        modules: The maps.
        done: Called after each row.

    Returns:
        Of each map what it saw, row by row.
    """
    kept: dict[nn.Module, list[Tokens]] = {module: [] for module in modules}

    def watch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing below is asked for: the backward ends here
            output = output.requires_grad_().clone()
        tokens = kept[module][-1]
        number = len(tokens.inputs)
        tokens.inputs.append(arguments[0].detach().flatten(0, -2))
        tokens.gradients.append(None)

        def arrive(gradient: Tensor) -> None:
            tokens.gradients[number] = gradient.detach().flatten(0, -2)

        output.register_hook(arrive)
        return output

    with run_on("row 1 of the batches"):
        scores = LabelScores(model, rows[0]) if rows else None
    hooks = [module.register_forward_hook(watch) for module in modules]
    try:
        with only_these_train(model, []):
            for number, row in enumerate(rows, 1):
                for module in modules:
                    kept[module].append(Tokens([], []))
                assert scores is not None
                with run_on(f"row {number} of the batches"):
                    scores.backward(row)
                done()
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def parameter_gradients(model: PreTrainedModel, row: Batch, names: Sequence[str]) -> Mapping[str, Tensor]:
    """The gradients of any parameters by one row.

    Args:
        model: The model, in the mode it is to be measured in.
        row: A batch of one row, on the model's device, without padding.
        names: Names of parameters.
    """
    with only_these_train(model, names) as parameters:
        with torch.enable_grad():
            output = scalar_outputs(model)(model, row)[0]
        if not output.requires_grad:  # as by an expert that sees no token of the row
            return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        used = list(parameters.values())
        gradients = torch.autograd.grad(output, used, materialize_grads=True, allow_unused=True)
        return dict(zip(parameters, gradients, strict=True))


@contextlib.contextmanager
def only_these_train(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Makes these parameters alone require gradients, so that no backward goes further down than it must, and back.

    Args:
        model: The model.
        names: Names of parameters.

    Yields:
        The parameters by name.
    """
    usual = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        yield {name: parameters[name] for name in names}
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(usual[name])
