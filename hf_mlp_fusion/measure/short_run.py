"""A short run of real training on a copy of a model, and how large a step along Adam's own direction may be."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch, evaluating, on_device, run_on
from ..errors import DataError

__all__ = ["critical_rate", "trained"]

_CLIP = 1.0  # Trainer's `max_grad_norm`
_DIRECTION = 8  # minibatches that Adam's direction is of
_FIRST, _LEAST, _LARGEST = 1e-5, 1e-9, 1.0  # rates where the search starts, and where it gives up


def trained(
    model: PreTrainedModel, batches: Sequence[Batch], learning_rate: float, seed: int
) -> tuple[PreTrainedModel, list[float]]:
    """Trains a copy of a model as Trainer does by default: AdamW, gradients clipped at 1, dropout as configured.

    Args:
        model: The model. It and the random states stay as they are.
        batches: A batch a step, with labels.
        learning_rate: The same for all steps.
        seed: Of the dropout.

    Returns:
        The copy, and the loss before each step.
    """
    pupil = copy.deepcopy(model)
    losses = []
    with _random_states(seed):
        optimizer = _adam(pupil, learning_rate)
        for number, batch in enumerate(batches, 1):
            losses.append(_step(pupil, optimizer, batch, f"batch {number}"))
    return pupil, losses


def critical_rate(model: PreTrainedModel, batches: Sequence[Batch], fresh: Batch, seed: int = 0) -> float:
    """The rate at which the loss of fresh rows turns up along Adam's own direction (after arXiv 2601.16979).

    The direction is Adam's after up to eight minibatches at the weights as they are. The rate is doubled (or halved,
    where the loss rises at once) until the loss is lowest, and that place searched for more closely: some twenty
    forwards without dropout. The paper's rate, at which the loss is back where it was, is twice that on a parabola.

    Args:
        model: The model. It and the random states stay as they are.
        batches: Minibatches with labels.
        fresh: Rows with labels that are not among them.
        seed: Of the dropout in the minibatches.

    Returns:
        The rate, within 5 % or so; 0 where the loss rises from the start, infinity where it never does.
    """
    from scipy.optimize import minimize_scalar

    moved = copy.deepcopy(model)
    parameters = [parameter for parameter in moved.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    with _random_states(seed):
        optimizer = _adam(moved, 0.0)
        for number, batch in enumerate(batches[:_DIRECTION], 1):
            if number == len(batches[:_DIRECTION]):
                for group in optimizer.param_groups:
                    group["lr"] = 1.0
            _step(moved, optimizer, batch, f"batch {number}")
    direction = [parameter.detach() - start for parameter, start in zip(parameters, before, strict=True)]

    def loss(rate: float) -> float:
        with evaluating(moved), run_on("the fresh rows"):
            for parameter, start, step in zip(parameters, before, direction, strict=True):
                parameter.copy_(start + rate * step)
            value = float(_loss(moved, fresh))
        return value if math.isfinite(value) else math.inf

    rate = _FIRST
    found = loss(rate)
    if found < (start := loss(0.0)):
        while (following := loss(2 * rate)) < found:
            rate, found = 2 * rate, following
            if rate > _LARGEST:
                return math.inf
    else:
        while found >= start:
            rate = rate / 2
            if rate < _LEAST:
                return 0.0
            found = loss(rate)
    bounds = (math.log(rate / 2), math.log(2 * rate))
    lowest = minimize_scalar(lambda x: loss(math.exp(x)), bounds=bounds, method="bounded", options={"xatol": 0.05})
    return math.exp(lowest.x)


def _adam(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    model.train()
    model.zero_grad(set_to_none=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, name: str) -> float:
    with torch.enable_grad(), run_on(name):
        loss = _loss(model, batch)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    loss = getattr(model(**on_device(batch, model)), "loss", None)
    if loss is None:
        raise DataError(f"{type(model).__name__} gives no loss on these batches: give them `labels`")
    return loss


@contextlib.contextmanager
def _random_states(seed: int) -> Iterator[None]:
    """Seeds what dropout draws from, and leaves it as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
