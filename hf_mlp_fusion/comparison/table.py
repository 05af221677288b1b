"""The table of a comparison, for Markdown and the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..errors import DataError
from .row import Costs, Row

__all__ = ["columns", "describe", "latest_comparison", "markdown_table", "not_shown", "print_table", "title"]

_QUALITY = ("output error", "hidden state", "NTK error", "NTK cosine", "NTK size", "loss", "perplexity")
_COSTS = ("parameters", "seconds", "forward, ms", "forward, faster", "step, ms", "step, faster")

_TITLES = {
    "original": "original",
    "fusion": "fusion",
    "fusion_kmeans": "fusion, k-means",
    "fusion_bias": "fusion, biases refitted",
    "fusion_output": "fusion, clusters refitted",
    "fusion_calibrated": "fusion, calibrated",
    "fusion_matched": "fusion, calibrated, P apart, kernels matched",
    "fusion_calibrated_raw": "fusion, calibrated, P apart, kernels not matched",
    "fusion_auto": "fusion, calibrated, widths searched for",
    "fusion_sampled": "fusion, calibrated on its own text",
    "cluster": "cluster (√P folded)",
    "svd": "SVD",
    "sketch": "sketch",
    "mmd": "MMD",
    "prune": "magnitude pruning",
    "ntk_sap": "NTK-SAP",
    "layer_drop": "every second layer",
    "reap": "fewer experts (REAP)",
    "flap": "FLAP",
    "wanda": "Wanda, structured",
    "compact": "COMPACT (FFNs)",
    "sdmprune": "SDMPrune",
    "nirvana": "NIRVANA (FFNs)",
}


def title(method: str) -> str:
    """What tables and pictures call a method."""
    return _TITLES.get(method, method)


def latest_comparison(rows: Sequence[Row]) -> list[Row]:
    """The rows of the comparison that was at work last.

    Raises:
        DataError: There are no rows.
    """
    if not rows:
        raise DataError("there is no finished row; run `hf-mlp-fusion compare` first")
    return [row for row in rows if row.comparison == rows[-1].comparison]


def not_shown(rows: Sequence[Row]) -> list[str]:
    """Names the other comparisons of a folder, whose rows `latest_comparison` leaves out, a line each.

    Args:
        rows: All rows of the folder.
    """
    others = {row.comparison: row for row in rows if row.comparison != rows[-1].comparison}
    return [f"Not shown, another comparison: {'; '.join(describe(row)[:3])}" for row in others.values()]


def columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Headers and contents of the table's columns, those left out that hold nothing.

    Args:
        rows: The rows of the table.
    """
    candidates: dict[str, Callable[[Row], object]] = {
        "parameters": lambda row: row.parameters and f"{row.parameters:,}",
        "output error": lambda row: _digits(row.output_error),
        "hidden state": lambda row: _digits(row.hidden_error),
        "NTK error": lambda row: _digits(row.ntk_error),
        "NTK cosine": lambda row: _digits(row.ntk_cosine),
        "NTK size": lambda row: _digits(row.ntk_size),
        "loss": lambda row: _digits(row.loss),
        "perplexity": lambda row: row.objective in ("causal", "masked") and _perplexity(row.perplexity),
        "seconds": lambda row: None if row.seconds is None else f"{row.seconds:.1f}",
        "forward, ms": lambda row: _milliseconds(row.forward),
        "forward, faster": lambda row: _times(row.forward),
        "step, ms": lambda row: _milliseconds(row.training),
        "step, faster": lambda row: _times(row.training),
        "forward, GFLOP": lambda row: row.forward and f"{row.forward.flops / 1e9:.1f}",
    }
    filled = {header: get for header, get in candidates.items() if any(get(row) for row in rows)}
    return {header: (lambda row, get=get: str(get(row) or "–")) for header, get in filled.items()}  # type: ignore[misc]


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


def _perplexity(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _milliseconds(costs: Costs | None) -> str | None:
    """The time; behind it the original's of the same turns, which others may be far from on a busy machine."""
    if costs is None:
        return None
    own = f"{1000 * costs.median:.0f} ± {1000 * costs.spread:.0f}"
    return own if costs.original is None else f"{own} (of {1000 * costs.original:.0f})"


def _times(costs: Costs | None) -> str | None:
    if costs is None or costs.speedup is None:
        return None
    return f"{costs.speedup:.2f} ×" if costs.certain else f"{costs.speedup:.2f} ×, within the spread"


def describe(row: Row) -> list[str]:
    """Says in a few lines what a table is about: model, recipe, data, machine."""
    about, recipe = row.about, row.about["recipe"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        f"Model: {about['model']} ({about['class']}), {about['fused']} FFNs reduced",
        f"Recipe: width {json.dumps(recipe['width'])}, layers {json.dumps(recipe['layers'])}, "
        f"targets {recipe['targets']}, clustering {recipe['clustering']}, seed {recipe['seed']}",
        f"Data: {about['data'] or 'texts'} ({about['samples']} rows for errors and NTK)",
        f"Machine: {about['device']}, {about['threads']} threads; {versions}",
    ]


def markdown_table(rows: Sequence[Row], others: Sequence[str] = ()) -> str:
    """The table as Markdown, with what it is about above and what was refused below.

    Args:
        rows: The rows.
        others: Lines on what is not in it.
    """
    shown = columns(rows)
    lines = [f"- {line}" for line in (*describe(rows[0]), *others)]
    lines += ["", f"| method | {' | '.join(shown)} |", f"| --- |{' ---: |' * len(shown)}"]
    for row in rows:
        if row.refused is None:
            lines.append(f"| {title(row.method)} | {' | '.join(get(row) for get in shown.values())} |")
    lines += [""] + [f"- {title(row.method)} was refused: {row.refused}" for row in rows if row.refused]
    return "\n".join(lines).rstrip() + "\n"


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints the table to the terminal, in two halves that fit its width.

    Args:
        rows: The rows.
        console: Where to.
    """
    shown = columns(rows)
    for part, caption in ((_QUALITY, "errors against the original"), (_COSTS, "costs")):
        table = Table(title=f"{rows[0].about['model']}: {caption}", box=SIMPLE_HEAD, collapse_padding=True)
        table.add_column("method", no_wrap=True)
        chosen = {header: get for header, get in shown.items() if header in part}
        for header in chosen:
            table.add_column(header, justify="right", min_width=10 if header == "parameters" else None)
        for row in rows:
            if row.refused is None:
                table.add_row(title(row.method), *(get(row) for get in chosen.values()))
        console.print(table)
    for row in rows:
        if row.refused is not None:
            console.print(f"{title(row.method)} was refused: {row.refused}", markup=False)
