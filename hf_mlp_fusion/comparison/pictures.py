"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .row import Row
from .table import title

__all__ = ["draw_clusters", "draw_costs", "draw_errors", "draw_kernels", "save"]

_COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as PNG, opaque, so that it is legible on dark pages too."""
    figure.savefig(path, dpi=150, facecolor="white")


def draw_errors(rows: Sequence[Row], *, kernel: bool) -> Figure:
    """Errors by FFN, a line a method.

    Args:
        rows: Rows with errors by FFN.
        kernel: Draw the error of the NTK instead of the output's.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    names: list[str] = []
    for index, row in enumerate(rows):
        errors = {name: e for name, e in (row.ntk_errors if kernel else row.output_errors).items() if e is not None}
        names = names or list(row.output_errors)
        places = [names.index(name) for name in errors]
        axes.plot(places, list(errors.values()), marker="o", ms=4, color=_COLOURS[index % 10], label=title(row.method))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(
        range(len(names)), names, rotation=90 if len(names) > 12 else 30, fontsize=6 if len(names) > 12 else 8
    )
    axes.set_ylabel("relative error of the Adam NTK" if kernel else "relative output error")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
    return figure


def draw_kernels(original: np.ndarray, kernels: Mapping[str, np.ndarray]) -> Figure:
    """Heat maps of the NTK: the original, then for each method its kernel and the difference.

    Args:
        original: The original's kernel, `[N, N]`.
        kernels: Kernels by method.
    """
    limit = np.quantile(np.abs(original), 0.99) or 1.0
    figure = Figure(figsize=(6.6, 2.0 * len(kernels)), layout="constrained")
    grid = figure.subplots(len(kernels), 3, squeeze=False)
    image = None
    for (method, kernel), cells in zip(kernels.items(), grid, strict=True):
        shown = ((original, "original"), (kernel, title(method)), (kernel - original, "difference"))
        for axes, (values, caption) in zip(cells, shown, strict=True):
            image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_title(caption, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    assert image is not None
    figure.colorbar(image, ax=grid, shrink=0.6, extend="both")
    return figure


def draw_clusters(rows: Iterable[Row]) -> Figure:
    """Cluster sizes: for each FFN how large its clusters are, largest first.

    Args:
        rows: Rows that have clusters.
    """
    rows = list(rows)
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for axes, row in zip(panels, rows, strict=True):
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(row.clusters)))
        for (name, sizes), shade in zip(row.clusters.items(), shades, strict=True):
            axes.step(range(1, len(sizes) + 1), sizes, where="mid", color=shade, lw=1.2, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("cluster, largest first")
        axes.set_title(title(row.method), fontsize=9)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("units in it")
    if len(rows[0].clusters) <= 12:
        panels[-1].legend(fontsize=6)
    return figure


def draw_costs(rows: Sequence[Row]) -> Figure:
    """Size and latency of each model.

    Args:
        rows: Rows with costs, the original's first.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.33 * len(rows)), layout="constrained")
    size, forward, training = figure.subplots(1, 3, sharey=True)
    places = range(len(rows))
    colours = ["0.45" if row.method == "original" else _COLOURS[0] for row in rows]
    size.barh(places, [(row.bytes or 0) / 1e6 for row in rows], color=colours)
    size.set_xlabel("size, MB")
    for axes, name, label in ((forward, "forward", "forward, ms"), (training, "training", "training step, ms")):
        costs = [getattr(row, name) for row in rows]
        medians, spreads = ([1000 * getattr(cost, field) for cost in costs] for field in ("median", "spread"))
        axes.barh(places, medians, xerr=[spread / 2 for spread in spreads], color=colours, ecolor="0.2")
        axes.set_xlabel(label)
    size.set_yticks(places, [title(row.method) for row in rows])
    size.invert_yaxis()
    for axes in (size, forward, training):
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    return figure
