"""`hf-mlp-fusion inspect`."""

from __future__ import annotations

import typer
from rich.console import Console

from .options import FusedModel, Json
from .tables import print_report

__all__ = ["inspect"]


def inspect(
    path: FusedModel,
    as_json: Json = False,
) -> None:
    """Show what fusion did to MODEL: widths, clusters, sizes. Nothing is loaded or executed."""
    from ..hub import read_saved

    report = read_saved(path).report
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        print_report(report, Console(highlight=False))
