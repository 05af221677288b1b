"""Tables of a bench, made from its lines: the rate and epoch are those that the held-out training rows choose."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..baselines import METHODS
from ..comparison.table import title
from .benches import BENCHES
from .lines import Line
from .runner import UNFUSED

__all__ = ["Cell", "chosen_lines", "markdown", "print_tables", "reported_epoch", "summarise"]

AVERAGE = "average"


@dataclass(frozen=True)
class Cell:
    """What a method reaches.

    Args:
        model: The original model.
        method: The method.
        column: A task, `"average"` over the tasks, or a metric.
        mean: Mean over the seeds.
        spread: Standard deviation over the seeds; None of a single one.
        seeds: How many seeds.
        rate: The learning rate that was chosen; None of an average.
        share: The mean as a share of the unfused model's on the same seeds; None where there is none.
        share_error: The standard error of that share, from the seeds that both have; None of a single one.
        parameters: Parameters of the model.
    """

    model: str
    method: str
    column: str
    mean: float
    spread: float | None
    seeds: int
    rate: float | None
    share: float | None
    share_error: float | None
    parameters: int


def summarise(lines: Sequence[Line]) -> list[list[Cell]]:
    """Summarises lines: a list of cells a table, one for each model, set of settings and recipe.

    What has no recipe, the unfused model and rivals, is in the table of each recipe.

    Args:
        lines: The lines of any benches.
    """
    alike: dict[str, list[Line]] = {}
    for line in lines:
        settings = {name: value for name, value in line.settings.items() if name != "recipe"}
        alike.setdefault(json.dumps([line.bench, line.model, settings], sort_keys=True), []).append(line)
    tables = []
    for own in alike.values():
        recipes: list[Any] = []
        for line in own:
            if (recipe := line.settings.get("recipe")) is not None and recipe not in recipes:
                recipes.append(recipe)
        tables += [
            _cells([line for line in own if line.settings.get("recipe") in (None, recipe)])
            for recipe in recipes or [None]
        ]
    return tables


def _cells(lines: Sequence[Line]) -> list[Cell]:
    metrics = BENCHES[lines[0].bench].metrics
    tasks = list(dict.fromkeys(line.task for line in lines))
    reached: dict[tuple[str, str], _Reached] = {}
    for method in _methods(lines):
        averages: dict[int, list[float]] = {}
        for task in tasks:
            chosen = chosen_lines([line for line in lines if line.method == method and line.task == task])
            for metric in metrics if chosen else ():
                column = task if metrics == ("score",) else metric
                values = {line.seed: line.reported[reported_epoch(line)].get(metric, math.nan) for line in chosen}
                if all(map(math.isnan, values.values())):  # METEOR, without WordNet
                    continue
                reached[method, column] = _Reached(values, chosen[0].rate, chosen[0].parameters)
                for seed, value in values.items():
                    averages.setdefault(seed, []).append(value)
        whole = {seed: statistics.mean(values) for seed, values in averages.items() if len(values) == len(tasks)}
        if len(tasks) > 1 and whole:
            reached[method, AVERAGE] = _Reached(
                whole, None, max(r.parameters for k, r in reached.items() if k[0] == method)
            )
    return [
        Cell(
            lines[0].model,
            method,
            column,
            mean=statistics.mean(cell.values.values()),
            spread=statistics.stdev(cell.values.values()) if len(cell.values) > 1 else None,
            seeds=len(cell.values),
            rate=cell.rate,
            share=share,
            share_error=error,
            parameters=cell.parameters,
        )
        for (method, column), cell in reached.items()
        for share, error in [_share(cell, reached.get((UNFUSED, column)))]
    ]


@dataclass(frozen=True)
class _Reached:
    values: dict[int, float]
    rate: float | None
    parameters: int


def _methods(lines: Sequence[Line]) -> list[str]:
    """The methods, the unfused model first and the rivals last."""
    names = dict.fromkeys(line.method for line in lines)
    known = [name for name in (UNFUSED, *METHODS) if name in names]
    return known + [name for name in names if name not in known]


def chosen_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines of the rate that is best on the held-out rows, in the mean over seeds."""
    finished = [line for line in lines if line.refused is None]
    rates: dict[float, list[Line]] = {}
    for line in finished:
        rates.setdefault(line.rate, []).append(line)
    most = max(map(len, rates.values()), default=0)
    whole = [own for own in rates.values() if len(own) == most]
    return max(whole, key=lambda own: statistics.mean(_fold_score(line) for line in own), default=[])


def reported_epoch(line: Line) -> int:
    """The epoch that is reported: the best one on the held-out rows, or the last where only that was scored."""
    if len(line.reported) < len(line.fold):
        return -1
    return max(range(len(line.fold)), key=lambda epoch: _number(line.fold[epoch]["score"]))


def _fold_score(line: Line) -> float:
    return _number(line.fold[reported_epoch(line)]["score"])


def _number(score: float) -> float:
    return score if score == score else float("-inf")  # a run that diverged


def _share(cell: _Reached, unfused: _Reached | None) -> tuple[float | None, float | None]:
    """The share of the unfused mean, and its standard error: of a ratio of means over the same seeds."""
    whole = {} if unfused is None else unfused.values
    pairs = [(value, whole[seed]) for seed, value in cell.values.items() if seed in whole]
    total = sum(of for _, of in pairs)
    if not total:
        return None, None
    share = sum(value for value, _ in pairs) / total
    if len(pairs) == 1:
        return share, None
    left = [value - share * of for value, of in pairs]
    return share, statistics.stdev(left) * math.sqrt(len(pairs)) / total


def rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of a table, as text."""
    columns = sorted(dict.fromkeys(cell.column for cell in cells), key=lambda column: column == AVERAGE)
    seeds = max(cell.seeds for cell in cells)
    body = []
    for method in dict.fromkeys(cell.method for cell in cells):
        own = {cell.column: cell for cell in cells if cell.method == method}
        parameters = max(cell.parameters for cell in own.values())
        texts = [_text(own.get(column), seeds) for column in columns]
        body.append([title(method), f"{parameters / 1e6:.1f} M", *texts])
    return ["", "parameters", *columns], body


def _text(cell: Cell | None, seeds: int) -> str:
    if cell is None:
        return "–"
    fewer = f", {cell.seeds} seeds" if 1 < cell.seeds < seeds else ", one seed" if cell.seeds < seeds else ""
    spread = "" if cell.spread is None else f" ± {cell.spread:.2f}"
    share = ""
    if cell.share is not None and cell.column == AVERAGE and cell.method != UNFUSED:
        error = "" if cell.share_error is None else f" ± {100 * cell.share_error:.1f}"
        share = f" ({100 * cell.share:.1f}{error} %)"
    return f"{cell.mean:.2f}{spread}{share}{fewer}"


def markdown(lines: Sequence[Line]) -> str:
    """The tables as Markdown, each under a line that says what it shows."""
    parts = []
    for cells in summarise(lines):
        headers, body = rows(cells)
        table = [headers, ["---", *["---:"] * (len(headers) - 1)], *body]
        parts.append(f"{_about(cells)}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
    return "\n".join(parts)


def _about(cells: Sequence[Cell]) -> str:
    seeds = max(cell.seeds for cell in cells)
    return f"{cells[0].model}: " + (f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed")


def print_tables(lines: Sequence[Line], console: Console) -> None:
    """Prints the tables, and what was refused."""
    for cells in summarise(lines):
        headers, body = rows(cells)
        table = Table(*headers, box=SIMPLE_HEAD, title=_about(cells), title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in body:
            table.add_row(*row)
        console.print(table)
    for refused in {(line.task, line.method): line for line in lines if line.refused}.values():
        console.print(f"{refused.task}, {title(refused.method)}: {refused.refused}", markup=False)
