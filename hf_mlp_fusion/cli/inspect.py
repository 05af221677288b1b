"""`hf-mlp-fusion inspect`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from .tables import print_report

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(help="A fused folder, or the Hub id of a fused model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Show what fusion did to a model: widths, clusters, sizes. Nothing is loaded or executed."""
    from ..saved import read_saved

    report = read_saved(path).report
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        print_report(report, Console(highlight=False))
