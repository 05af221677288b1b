"""Runs the jobs of a bench, in several processes where asked. A job reduces a model once, trains it at each rate."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
import transformers
from transformers import PreTrainedModel

from .. import __version__
from ..baselines import METHODS, reduce_model
from ..errors import FusionConfigError, UnsupportedModelError
from ..recipe import FusionConfig
from .benches import BENCHES
from .lines import Line, key_of
from .train import Settings

__all__ = ["RIVAL", "UNFUSED", "Job", "jobs_for", "run_jobs"]

UNFUSED = "unfused"
RIVAL = "rival:"
"""Stands before the name of another checkpoint that is fine-tuned in the model's place."""


@dataclass(frozen=True)
class Job:
    """The runs that share one smaller model.

    Args:
        bench: Key of `BENCHES`.
        model: Folder or Hub id of the original model.
        data: Where the data are.
        task: The task.
        method: `"unfused"`, a key of `METHODS`, or `"rival:NAME"`.
        seed: Seed of head, order and dropout.
        rates: Learning rates to run.
        recipe: Which FFNs become how wide.
        settings: How to train.
        limit: Rows of each split, at most.
        command: The command, for the lines.
    """

    bench: str
    model: str
    data: str
    task: str
    method: str
    seed: int
    rates: tuple[float, ...]
    recipe: FusionConfig
    settings: Settings
    limit: int | None = None
    command: str = ""

    def line(self, rate: float) -> Line:
        """The line of one run, without its outcome."""
        settings = asdict(self.settings) | {"limit": self.limit, "recipe": self.recipe.to_dict()}
        if self.method == UNFUSED or self.method.startswith(RIVAL):
            del settings["recipe"]
        model, method = Path(self.model).name, self.method
        if method.startswith(RIVAL):
            method = RIVAL + Path(method.removeprefix(RIVAL)).name
        key = key_of(self.bench, model, self.task, method, self.seed, rate, settings)
        return Line(key, self.bench, model, self.task, method, self.seed, rate, settings, command=self.command)


def jobs_for(template: Job, tasks: Sequence[str], methods: Sequence[str], seeds: int, done: set[str]) -> list[Job]:
    """The jobs of a bench that are not done yet.

    Args:
        template: What all jobs share; its task, method and seed are replaced, its rates are the grid.
        tasks: Tasks.
        methods: Methods.
        seeds: How many seeds, from 0 on.
        done: Keys of the lines that are there.

    Raises:
        FusionConfigError: There is no such task or method.
    """
    bench = BENCHES[template.bench]
    for kind, names, known in (("task", tasks, bench.tasks), ("method", methods, (UNFUSED, *METHODS))):
        for name in names:
            if name not in known and not (kind == "method" and name.startswith(RIVAL)):
                raise FusionConfigError(f"there is no {kind} {name!r}; choose from {', '.join(known)}")
    jobs = []
    # Seeds go outermost: stopped early, a bench has all methods on the first seeds.
    for seed in range(seeds):
        for task in tasks:
            for method in methods:
                job = replace(template, task=task, method=method, seed=seed)
                rates = tuple(rate for rate in job.rates if job.line(rate).key not in done)
                if rates:
                    jobs.append(replace(job, rates=rates))
    return jobs


def run_jobs(jobs: Sequence[Job], processes: int = 1) -> Iterator[Line]:
    """Runs jobs, and yields a line as soon as a run is finished.

    Args:
        jobs: The jobs.
        processes: Processes to run them in; they take turns at the GPUs that are visible.

    Raises:
        FusionConfigError: Processes that shared a GPU ran out of its memory. All other jobs are finished first.
    """
    if processes == 1:
        for job in jobs:
            yield from run_job(job)
        return
    context = torch.multiprocessing.get_context("spawn")
    turns: Any = context.SimpleQueue()
    gpus = _visible_gpus()
    for number in range(processes):
        turns.put(gpus[number % len(gpus)] if gpus else "")
    expected = finished = 0
    with context.Pool(processes, _start_worker, (turns,)) as pool:
        for job, lines in pool.imap_unordered(_finish_job, jobs):
            expected, finished = expected + len(job.rates), finished + len(lines)
            yield from lines
    if finished < expected:
        raise FusionConfigError(
            f"{expected - finished} runs found too little memory on a GPU that processes share; "
            "the same command with fewer --processes makes up for them"
        )


def run_job(job: Job) -> Iterator[Line]:
    """Runs a job, and yields a line a rate."""
    bench = BENCHES[job.bench]
    data = bench.load_data(job.task, job.data, job.limit)
    source = job.method.removeprefix(RIVAL) if job.method.startswith(RIVAL) else job.model
    try:
        model, tokenizer = bench.load_model(job.task, source, job.seed)
    except UnsupportedModelError as error:  # of this task, say; the others go on
        yield from _refused(job, error)
        return
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    started = time.perf_counter()
    try:
        smaller = _reduced(job, model, tokenizer, data)
    except (FusionConfigError, UnsupportedModelError) as error:
        yield from _refused(job, error)
        return
    reduce_seconds = time.perf_counter() - started
    for rate in job.rates:
        started = time.perf_counter()
        trained = copy.deepcopy(smaller) if len(job.rates) > 1 else smaller
        outcome = bench.run(job.task, trained, tokenizer, data, job.settings, job.seed, rate)
        yield replace(
            _described(job, rate, smaller),
            fold=outcome["fold"],
            reported=outcome["reported"],
            reduce_seconds=round(reduce_seconds, 2),
            seconds=round(time.perf_counter() - started, 2),
        )


def _reduced(job: Job, model: PreTrainedModel, tokenizer: Any, data: Any) -> PreTrainedModel:
    if job.method not in METHODS:
        return model
    calibration = BENCHES[job.bench].calibration(job.task, model, tokenizer, data, job.settings)
    return reduce_model(model, job.recipe, job.method, calibration=calibration)


def _refused(job: Job, error: Exception) -> Iterator[Line]:
    return (replace(job.line(rate), refused=str(error)) for rate in job.rates)


def _described(job: Job, rate: float, model: PreTrainedModel) -> Line:
    return replace(
        job.line(rate),
        parameters=model.num_parameters(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        versions={
            "hf_mlp_fusion": __version__,
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
        },
    )


def _finish_job(job: Job) -> tuple[Job, list[Line]]:
    """The lines of a job, up to the one that the GPU has no memory for: raised, it would end all other processes."""
    lines: list[Line] = []
    with contextlib.suppress(torch.OutOfMemoryError):
        lines.extend(run_job(job))
    return job, lines


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def _start_worker(turns: Any) -> None:
    """Gives a process one GPU, before CUDA starts in it, and keeps it quiet: the parent shows the progress."""
    os.environ["CUDA_VISIBLE_DEVICES"] = turns.get()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
