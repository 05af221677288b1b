"""`hf-mlp-fusion compare`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..config import FusionConfig
from ..errors import DataError
from .fuse import parse_layers, parse_width

__all__ = ["compare"]

_DEFAULTS = FusionConfig()


def compare(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a stock model.")],
    texts: Annotated[
        Path | None,
        typer.Option(help="File to measure on: a text a line, or parquet, csv or json with a text column."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set to measure on instead: a name, its configuration behind a colon.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; fusion_kmeans is the paper's own clustering.")
    ] = "fusion,fusion_kmeans,fusion_calibrated,cluster,svd,sketch,mmd,prune,ntk_sap,layer_drop",
    out: Annotated[Path, typer.Option(help="Folder of results. What it holds already is not measured again.")] = Path(
        "comparison"
    ),
    width: Annotated[
        str, typer.Option(help="Units to keep (384), a share (0.25), or pairs of patterns and either.")
    ] = str(_DEFAULTS.width),
    layers: Annotated[str, typer.Option(help="Layers to reduce: all, last:8, 4:12, numbers, or name patterns.")] = str(
        _DEFAULTS.layers
    ),
    targets: Annotated[str, typer.Option(help="auto, dense, experts or all.")] = _DEFAULTS.targets,
    head: Annotated[
        str, typer.Option(help="own (as saved), or classifier (a new one with random weights, as fine-tuning starts).")
    ] = "own",
    samples: Annotated[int, typer.Option(min=1, help="Rows for errors and NTK.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of everything that has any randomness.")] = _DEFAULTS.seed,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare fusion with its rivals on MODEL and your texts: a table, pictures and a page in OUT.

    Each finished method is kept at once: stop with Ctrl-C when you like, and the same command goes on from there.
    """
    if (texts is None) == (dataset is None):
        raise DataError("give --texts FILE or --dataset NAME, one of the two")
    config = FusionConfig(parse_width(width), parse_layers(layers), targets, seed=seed)
    chosen = [name.strip() for name in methods.split(",") if name.strip()]

    from transformers.utils import logging as transformers_logging

    from ..comparison import compare as run
    from ..comparison import load_subject, print_table, write_report
    from ..data import read_texts

    source = str(texts or dataset)
    console = Console(stderr=True, highlight=False)
    lines = read_texts(source, split=split)
    subject = load_subject(model, lines, data=source, head=head, samples=samples, seed=seed, device=device)
    out = out.expanduser()
    try:
        with transformers_logging.tqdm(total=len(set(chosen)) + 1, desc="Comparing", unit="model") as progress:
            for row in run(subject, config, chosen, out):
                progress.set_description(f"Comparing ({row.method} done)")
                progress.update()
    except KeyboardInterrupt:
        console.print(f"The finished rows are in {out}; the same command goes on from there.", markup=False)
        raise
    rows = write_report(out, shlex.join(["hf-mlp-fusion", *sys.argv[1:]]))
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    print_table(rows, Console(highlight=False))
    console.print(f"Table, pictures and page: {out / 'index.html'}", markup=False)
