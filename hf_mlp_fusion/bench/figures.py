"""What a bench measured of one method, as a model card shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..errors import DataError
from ..hub import Measured
from .benches import BENCHES
from .lines import Line
from .table import chosen_lines, reported_epoch

__all__ = ["figures"]

_NO_METRICS = ("loss", "score")


def figures(lines: Sequence[Line], method: str) -> list[Measured]:
    """The figures of a method: each metric of each task, mean and standard deviation over the seeds.

    Args:
        lines: Lines of benches, with one model and one set of settings for each task.
        method: The method.

    Raises:
        DataError: No line is of this method.
    """
    own = [line for line in lines if line.method == method and line.refused is None]
    if not own:
        known = ", ".join(dict.fromkeys(line.method for line in lines))
        raise DataError(f"no line is of the method {method!r}; there are lines of {known or 'none'}")
    found = []
    for bench, task in dict.fromkeys((line.bench, line.task) for line in own):
        chosen = chosen_lines([line for line in own if (line.bench, line.task) == (bench, task)])
        for metric in chosen[0].reported[-1]:
            if metric in _NO_METRICS:
                continue
            values = [line.reported[reported_epoch(line)][metric] for line in chosen]
            found.append(
                Measured(
                    task=BENCHES[bench].task_type,
                    dataset=task,
                    split=BENCHES[bench].split(task),
                    metric=metric,
                    value=round(statistics.mean(values), 2),
                    spread=round(statistics.stdev(values), 2) if len(values) > 1 else None,
                    seeds=len(values),
                    command=chosen[0].command,
                )
            )
    return found
