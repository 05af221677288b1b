"""`hf-mlp-fusion report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import DataError
from .options import Json

__all__ = ["report"]


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that `hf-mlp-fusion compare` wrote its results to.")
    ],
    as_json: Json = False,
) -> None:
    """Write table and page anew from the finished rows of a comparison, also of one that was stopped.

    Pictures are drawn where rows came since they were.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the --out folder of `hf-mlp-fusion compare`")

    from ..comparison import describe, not_shown, print_table, read_rows, write_report

    rows = write_report(folder)
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in (*describe(rows[0]), *not_shown(read_rows(folder))):
        notes.print(line, markup=False)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    print_table(rows, Console(highlight=False))
    notes.print(f"Table, pictures and page: {folder / 'index.html'}", markup=False)
