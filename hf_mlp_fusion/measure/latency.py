"""Wall-clock time of a forward or of a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..data import Batch, evaluating, inputs_of, on_device
from .step import training_step

__all__ = ["Latency", "in_turn", "latencies", "latency"]

_WARM_UP = 2  # runs before the clock counts: allocator, kernels' choice of algorithm, caches
_FEWEST_RUNS = 5  # below which a median and quartiles say little
_LONGEST = 10.0  # seconds to spend on each model, after which two runs must do


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
    return latencies([model], batch, training=training, seconds=seconds)[0]


def latencies(
    models: Sequence[PreTrainedModel], batch: Batch, *, training: bool = False, seconds: float = 1.0
) -> list[Latency]:
    """Times several models in turn, run by run, so that a machine busy with other work slows all of them alike.

    Args:
        models: The models; their weights are unchanged afterwards.
        batch: What to run them on.
        training: Time a training step.
        seconds: Time to spend on each. Five runs are made also where they take longer, but of a model whose runs take
            seconds only two.
    """
    runs = [_run(model, on_device(batch, model), training) for model in models]
    with evaluating(*models), torch.set_grad_enabled(training):
        return in_turn(runs, seconds)


def in_turn(runs: Sequence[Callable[[], float]], seconds: float) -> list[Latency]:
    """Makes runs in turn, after a warm-up.

    Args:
        runs: Functions that return the seconds that they took.
        seconds: Time to spend on each. Five runs are made also where they take longer, but of a function whose runs
            take seconds only two.
    """
    taken: list[list[float]] = [[] for _ in runs]
    started = time.perf_counter()

    def spent() -> float:
        return (time.perf_counter() - started) / len(runs)

    for _ in range(_WARM_UP):
        if spent() < _LONGEST / 10:  # the first is needed, the second is for runs that are short
            for run in runs:
                run()
    started = time.perf_counter()
    while len(taken[0]) < 2 or (spent() < _LONGEST and (len(taken[0]) < _FEWEST_RUNS or spent() < seconds)):
        for times, run in zip(taken, runs, strict=True):
            times.append(run())
    quartiles = [statistics.quantiles(times, n=4, method="inclusive") for times in taken]
    return [Latency(q[1], q[2] - q[0], len(times)) for q, times in zip(quartiles, taken, strict=True)]


def _run(model: PreTrainedModel, batch: Batch, training: bool) -> Callable[[], float]:
    """A function that runs a model once and returns the seconds that it took."""
    arguments = inputs_of(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if training else None

    def wait() -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    def run() -> float:
        wait()
        started = time.perf_counter()
        if training:
            training_step(model, batch, optimizer)
        else:
            model(**arguments)
        wait()
        return time.perf_counter() - started

    return run
