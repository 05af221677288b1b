"""`hf-mlp-fusion demo`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..files import check_output_folder
from ..recipe import FusionConfig
from .options import OUTPUT, Json, Layers, Width, parse_layers, parse_width
from .tables import print_report

if TYPE_CHECKING:
    from .demonstration import DemoResult

__all__ = ["demo"]


def demo(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a text model.", show_default="the MiniLM of the demo extra"),
    ] = None,
    width: Width = "0.25",
    layers: Layers = "last:4",
    data_free: Annotated[
        bool, typer.Option("--data-free", help="Do not calibrate (on sentences of Python's documentation).")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder to write; a model folder there is replaced.", rich_help_panel=OUTPUT)
    ] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Fuse a real model, save it, load it in a fresh process, and compare it with the original. No Hub needed."""
    config = FusionConfig(parse_width(width), parse_layers(layers))
    check_output_folder(out, overwrite=True)

    from .demonstration import run_demo

    if model is None:
        from ..files import minilm_folder

        model = str(minilm_folder())
    result = run_demo(model, config, out, calibrated=not data_free)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        _print(result, out, Console(highlight=False))
    if not result.identical:
        raise typer.Exit(1)


def _print(result: DemoResult, out: Path, console: Console) -> None:
    print_report(result.report, console)
    console.print()

    table = Table(title="Output error of each fused FFN: ‖fused − original‖ / ‖original‖")
    table.add_column("FFN")
    table.add_column("error", justify="right")
    for name, error in result.output_error.ffns.items():
        table.add_row(name, f"{error:.3f}")
    table.add_row("last hidden state", f"{result.output_error.hidden_state:.3f}")
    console.print(table)
    console.print(
        "Each FFN's error is its own, on the inputs that the original gives it. The last hidden state's is what all "
        "of them add up to: 0 is the same, 1.41 (√2) has nothing in common. A model fused in one go is a start for "
        "fine-tuning, which is where the difference goes; `hf-mlp-fusion tune` takes some away before.\n",
        markup=False,
    )

    from .demonstration import PAIRS

    table = Table(title="Similarity of sentence pairs")
    table.add_column("pair", overflow="fold")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for (first, second), (before, after) in zip(PAIRS, result.similarities, strict=True):
        table.add_row(f"{first} / {second}", f"{before:.2f}", f"{after:.2f}")
    console.print(table)

    stock, fused = result.latency
    console.print(
        f"Forward on {2 * len(PAIRS)} sentences: {stock.median * 1e3:.1f} ms → {fused.median * 1e3:.1f} ms "
        f"({stock.median / fused.median:.2f} times as fast)"
    )
    verdict = "the same bits" if result.identical else "[red]other numbers[/]"
    console.print(f"Loaded from {out} in a fresh process by AutoModel.from_pretrained: {verdict}")
