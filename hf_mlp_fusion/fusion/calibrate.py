"""`calibrate_model`: the statistics of a model, made once, to fuse it as often as one likes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    Batch,
    Processes,
    objective_of,
    plain_context,
    progress_over,
    row_count,
    spare_bytes,
)
from ..errors import FusionConfigError, check_choice
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..recipe import METRICS
from ..tensors import MomentSums
from .calibration import calibration_batches, hold_out, moments_work, run_watched
from .checks import check_reducible
from .enough import token_count
from .layer_fuser import moment_bytes
from .loss_metric import loss_metrics, metric_place, metric_work
from .receipts import source_of
from .statistics import FFNStatistics, Statistics
from .statistics_header import Header, token_hash
from .watching import KeptTokens, Running, watch_moments
from .work import open_work

__all__ = ["StatisticsSums", "begin", "calibrate_model", "write_moments"]


@plain_context()
def calibrate_model(
    model: PreTrainedModel,
    folder: str | Path,
    calibration: Any,
    *,
    tokenizer: Any = None,
    metric: str = "auto",
    seed: int = 0,
) -> Statistics:
    """Writes what fusing a model needs to know of it into files. What is stopped goes on when it is called again.

    Args:
        model: A stock model, in memory.
        folder: Where to. It is made; what another calibration has left there is refused.
        calibration: As for `fuse_model`.
        tokenizer: As for `fuse_model`.
        metric: `"loss"`, `"output"`, or `"auto"`: the loss of language models.
        seed: Seed of the answers that the metric of the loss is taken on: that of the recipe to come.

    Returns:
        The statistics: `fuse_model(model, config, calibration=statistics)` makes what it makes with the data
        themselves, bit for bit, if those moments fit into memory at once.

    Raises:
        FusionConfigError: The folder holds something else, or another run is at work on it.
        UnsupportedModelError: As `fuse_model`.
        DataError: As `fuse_model`.
        MemoryLimitError: As `fuse_model`.
    """
    check_reducible(model)
    check_choice("metric", metric, METRICS)
    batches = calibration_batches(model, calibration, tokenizer)
    with open_work(Path(folder)):
        statistics = begin(model, Path(folder), batches, metric, seed)
        rows, held_out = hold_out(batches)
        ffns = [ffn for ffn in find_ffns(model) if ffn.name not in statistics.header.ffns]
        work = moments_work(model, ffns, batches) if ffns else 0.0
        wanted = statistics.header.metric == "loss" and not statistics.header.whole
        work += metric_work(model, rows) if wanted else 0.0
        with progress_over(work, "Calibrating"):
            for some in _fitting(model, ffns):
                write_moments(model, some, rows, held_out, statistics)
            if wanted:
                everything = list(find_ffns(model))
                factors = loss_metrics(model, everything, rows, statistics.header.seed)
                for ffn in {metric_place(ffn): ffn for ffn in everything}.values():
                    statistics.write_metric(metric_place(ffn), factors.get(ffn.name))
        statistics.done([], whole=True)
    return statistics


def begin(model: PreTrainedModel, folder: Path, batches: Sequence[Batch], metric: str, seed: int) -> Statistics:
    """Begins statistics, or finds those that were begun.

    Args:
        model: The model.
        folder: Where they are to be.
        batches: All calibration data.
        metric: As for `calibrate_model`.
        seed: As for `calibrate_model`.

    Raises:
        FusionConfigError: The folder holds something else.
    """
    if metric == "auto":
        metric = "loss" if objective_of(model) in LANGUAGE_OBJECTIVES else "output"
    header = Header(
        source=source_of(model),
        rows=sum(map(row_count, batches)),
        tokens=sum(map(token_count, batches)),
        sha256=token_hash(batches),
        metric=metric,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        return Statistics.create(folder, header)
    found = Statistics(folder)
    for name in ("source", "sha256", "metric", "seed"):
        if getattr(found.header, name) != getattr(header, name):
            raise FusionConfigError(
                f"{folder} holds statistics of another {_CALLED[name]} ({getattr(found.header, name)}): name another "
                "folder, or remove it"
            )
    return found


_CALLED = {"source": "model", "sha256": "calibration", "metric": "metric", "seed": "seed"}


def _fitting(model: PreTrainedModel, ffns: Sequence[FFN]) -> Iterator[list[FFN]]:
    """Whole layers whose moments may be held at once."""
    some: list[FFN] = []
    size, room = 0, spare_bytes(model.device)
    for _, group in itertools.groupby(ffns, key=lambda ffn: (ffn.stack, ffn.layer)):
        layer = list(group)
        more = sum(moment_bytes(ffn, ffn.width) for ffn in layer)
        if some and size + more > room:
            yield some
            some, size = [], 0
        some += layer
        size += more
    if some:
        yield some


class StatisticsSums:
    """What becomes the statistics of an FFN.

    Args:
        ffn: The FFN.
    """

    def __init__(self, ffn: FFN) -> None:
        self.ffn = ffn
        self._sums = MomentSums(centred=ffn.read().down_bias is not None)
        self._few = KeptTokens(most=(ffn.width - 1) // 2)  # of any of its widths, `is_rare`
        self._held_out = KeptTokens()

    def watch(self, running: Running, *, held_out: bool) -> Iterator[RemovableHandle]:
        """Hooks that add what passes through the FFN.

        Args:
            running: What runs.
            held_out: It is what errors are told by.
        """
        if held_out:
            return watch_moments(self.ffn, None, running, kept=self._held_out)
        return watch_moments(self.ffn, self._sums, running, kept=self._few)

    def join(self, processes: Processes) -> None:
        """Takes what all processes saw together."""
        if processes.count == 1:
            return
        sums, device = self._sums, processes.device
        origins = processes.joined([sums.origin and (sums.origin[0].cpu(), sums.origin[1].cpu())])
        near = next((item for item in origins if item is not None), None)
        origin = near and (near[0].to(device), near[1].to(device))
        sums.put(processes.summed(sums.parts(self.ffn.width, self.ffn.output_size, origin, device)), origin)
        self._few.join(processes)
        self._held_out.join(processes)

    def statistics(self) -> FFNStatistics:
        """The statistics."""
        moments = self._sums.moments() if self._sums.count else None
        return FFNStatistics(moments, self._held_out.sample(), self._few.sample())


def write_moments(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    rows: Sequence[Batch],
    held_out: Sequence[Batch],
    statistics: Statistics,
) -> None:
    """Takes moments of FFNs by passes through the whole model, and writes them."""
    sums = {ffn: StatisticsSums(ffn) for ffn in ffns}
    run_watched(model, ffns, rows, lambda ffn, running: sums[ffn].watch(running, held_out=False))
    if held_out:
        run_watched(model, ffns, held_out, lambda ffn, running: sums[ffn].watch(running, held_out=True))
    for ffn in ffns:
        statistics.write(ffn, sums.pop(ffn).statistics())
    statistics.done(ffn.name for ffn in ffns)
