"""Per-sample gradients of a model's scalar output."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from transformers import PreTrainedModel

from ..data import Batch, row_count, unpadded
from ..families import family_of
from .scalars import scalar_outputs

__all__ = ["Slice", "only_these_train", "sample_gradients"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slice:
    """A range of one flattened parameter.

    Args:
        block: The block that the parameter belongs to.
        parameter: Its name.
        start: First element.
        stop: Behind the last element.
    """

    block: str
    parameter: str
    start: int
    stop: int


def sample_gradients(
    model: PreTrainedModel, batches: Sequence[Batch], slices: Sequence[Slice], done: Callable[[int], Any]
) -> Tensor:
    """Computes one row of gradients a sample.

    Samples are taken together (`torch.func.vmap`) where the model allows it. Padding masks and expert routing look at
    values, which vmap forbids: there they are taken one by one.

    Args:
        model: The model, in the mode it is to be measured in.
        batches: Batches on the model's device.
        slices: What to differentiate by.
        done: Called with the number of samples just finished.

    Returns:
        `[samples, sum of the slices' sizes]`, in the model's dtype and on its device.
    """
    names = list(dict.fromkeys(item.parameter for item in slices))
    rows = torch.empty(
        sum(map(row_count, batches)),
        sum(item.stop - item.start for item in slices),
        dtype=model.dtype,
        device=model.device,
    )
    row, together = 0, family_of(model.config).router is None
    with only_these_train(model, names) as parameters:
        for batch in batches:
            size = row_count(batch)
            stop = row + size
            if together:
                try:
                    rows[row:stop] = _together(model, parameters, batch, slices)
                    done(size)
                except RuntimeError as error:
                    logger.debug("gradients sample by sample, because %s", error)
                    together = False
            if not together:
                samples = [
                    {name: tensor[index : index + 1] for name, tensor in batch.items()} for index in range(size)
                ]
                for index, sample in enumerate(unpadded(samples), start=row):
                    _alone(model, parameters, sample, slices, rows[index])
                    done(1)
            row = stop
    return rows


def _together(model: PreTrainedModel, parameters: dict[str, Tensor], batch: Batch, slices: Sequence[Slice]) -> Tensor:
    scalar = scalar_outputs(model)

    def output(values: dict[str, Tensor], sample: Batch) -> Tensor:
        def run(**arguments: Tensor) -> Any:
            return functional_call(model, values, (), arguments)

        return scalar(run, {name: tensor[None] for name, tensor in sample.items()})[0]

    def gradients(values: dict[str, Tensor], sample: Batch) -> Tensor:
        by_name = grad(output)(values, sample)
        return torch.cat([by_name[item.parameter].flatten()[item.start : item.stop] for item in slices])

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    with torch.no_grad(), _eager_attention(model):
        return vmap(gradients, in_dims=(None, 0))(values, batch)


def _alone(
    model: PreTrainedModel, parameters: dict[str, Tensor], sample: Batch, slices: Sequence[Slice], row: Tensor
) -> None:
    """Writes the gradients of one sample into its row."""
    with torch.enable_grad():
        output = scalar_outputs(model)(model, sample)[0]
    # An expert that sees no token of the sample is not used: its gradient is zero, and so may all be.
    used = list(parameters.values())
    if output.requires_grad:
        gradients = torch.autograd.grad(output, used, materialize_grads=True, allow_unused=True)
    else:
        gradients = tuple(torch.zeros_like(parameter) for parameter in used)
    by_name = dict(zip(parameters, gradients, strict=True))
    column = 0
    for item in slices:
        size = item.stop - item.start
        row[column : column + size] = by_name[item.parameter].flatten()[item.start : item.stop]
        column += size


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


@contextlib.contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out, the only kind whose masks vmap can build."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
