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
    """Write table, pictures and page anew from the finished rows of a comparison, also of one that was stopped."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the --out folder of `hf-mlp-fusion compare`")

    from ..comparison import print_table, write_report

    rows = write_report(folder)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    print_table(rows, Console(highlight=False))
    Console(stderr=True, highlight=False).print(f"Table, pictures and page: {folder / 'index.html'}", markup=False)
