"""Wall-clock time of a forward or of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from ..data import Batch
from .running import evaluating, inputs_of, on_device, training_step

__all__ = ["Latency", "latency"]

_FEWEST_RUNS = 5  # below which a median and quartiles say nothing


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one run.

    Args:
        median: Median, in seconds.
        spread: Distance between the quartiles, in seconds.
        runs: Runs timed.
    """

    median: float
    spread: float
    runs: int


def latency(model: PreTrainedModel, batch: Batch, *, training: bool = False, seconds: float = 1.0) -> Latency:
    """Times a forward, or a training step (forward, backward, AdamW), warm, with torch's present thread count.

    Args:
        model: The model; its weights are unchanged afterwards.
        batch: What to run it on.
        training: Time a training step.
        seconds: Time to spend, at least; five runs are made whatever they take.
    """
    batch = on_device(batch, model)
    arguments = inputs_of(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if training else None
    timer = Timer(
        stmt="step(model, batch, optimizer)" if training else "model(**arguments)",
        globals={
            "step": training_step,
            "model": model,
            "batch": batch,
            "arguments": arguments,
            "optimizer": optimizer,
        },
        num_threads=torch.get_num_threads(),
    )
    with evaluating(model), torch.set_grad_enabled(training):
        one_run = timer.timeit(1).median  # warms up: it runs twice before it starts the clock
        measured = timer.blocked_autorange(min_run_time=max(seconds, _FEWEST_RUNS * one_run))
    return Latency(measured.median, measured.iqr, len(measured.times) * measured.number_per_run)
