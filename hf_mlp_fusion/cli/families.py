"""`hf-mlp-fusion families`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..families import FAMILIES, Family, FFNSpec
from .options import OUTPUT, Json

__all__ = ["families"]

_COLUMNS = ("model type", "stock config", "FFNs", "width field", "note")


def families(
    as_json: Json = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """List the model families that can be fused: by the model_type in a model's config.json."""
    rows = [_row(FAMILIES[name]) for name in sorted(FAMILIES)]
    if as_json:
        typer.echo(json.dumps([dict(zip(_COLUMNS, row, strict=True)) for row in rows], indent=2))
    elif as_markdown:
        typer.echo(markdown(rows), nl=False)
    else:
        _print(rows, Console(highlight=False))


def markdown(rows: list[tuple[str, ...]]) -> str:
    """The families as a Markdown table.

    Args:
        rows: Their rows, a column each of `_COLUMNS`.
    """
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *((f"`{row[0]}`", *row[1:]) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _print(rows: list[tuple[str, ...]], console: Console) -> None:
    table = Table()
    for name in (_COLUMNS[0], *_COLUMNS[2:4]):
        table.add_column(name, overflow="fold")
    for model_type, _, kind, fields, _ in rows:
        table.add_row(model_type, kind, fields)
    console.print(table)
    for model_type, *_, note in rows:
        if note:
            console.print(f"{model_type}: {note}", markup=False)
    console.print("A family of your own is one FFNSpec: hf_mlp_fusion.register_family.", markup=False)


def _row(family: Family) -> tuple[str, ...]:
    fields = dict.fromkeys(family.width_field_of(spec) or "–" for spec in family.ffns)
    kinds = dict.fromkeys(_kind(spec) for spec in family.ffns)
    return family.model_type, family.config_class, "; ".join(kinds), ", ".join(fields), family.note


def _kind(spec: FFNSpec) -> str:
    kind = "two matrices" if spec.gate is None else "gated"
    if spec.packed is not None:
        kind = "gated, gate and up in one matrix"
    if spec.stacked:
        return f"experts in 3-D stacks, {kind}"
    if "(?P<expert>" in spec.pattern:
        kind += ", and experts"
    return kind if spec.activation is not None else f"{kind}, activation a function"
