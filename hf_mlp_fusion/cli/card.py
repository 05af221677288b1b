"""`hf-mlp-fusion card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import BaseModel, FusedFolder, License, LicenseNote

__all__ = ["card"]


def card(
    path: FusedFolder,
    license: License = None,
    license_note: LicenseNote = "",
    base_model: BaseModel = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Figures to show: JSON lines with task, dataset, split, metric, value (spread, seeds, command)."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write README.md anew, instead of adding to what it says.")
    ] = False,
) -> None:
    """Write the model card of the fused FOLDER: README.md, and a picture of the errors beside it.

    A README.md that is there keeps its text: the part on fusion is added, or written anew between its marks.
    """
    from ..hub import read_measured, write_card

    written = write_card(
        path,
        overwrite=overwrite,
        license=license,
        license_note=license_note,
        base_model=base_model,
        measured=[] if results is None else read_measured(results),
    )
    Console(highlight=False, soft_wrap=True).print(f"Written: {written}", markup=False)
