"""`hf-mlp-fusion compare`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import DataError
from ..recipe import FusionConfig
from .options import (
    DEFAULTS,
    OUTPUT,
    RIVALS,
    RUN,
    Column,
    Dataset,
    Device,
    Json,
    Layers,
    Seed,
    Split,
    Targets,
    Texts,
    Width,
    check_device,
    parse_layers,
    parse_names,
    parse_width,
)

__all__ = ["compare"]


def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a stock model.")],
    texts: Texts = None,
    dataset: Dataset = None,
    split: Split = "train",
    column: Column = None,
    width: Width = str(DEFAULTS.width),
    layers: Layers = str(DEFAULTS.layers),
    targets: Targets = DEFAULTS.targets,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas; fusion_kmeans is the paper's own clustering.",
            rich_help_panel=RUN,
        ),
    ] = RIVALS,
    head: Annotated[
        str,
        typer.Option(
            help="own (as saved), or classifier (a new one with random weights, as fine-tuning starts).",
            rich_help_panel=RUN,
        ),
    ] = "own",
    samples: Annotated[int, typer.Option(min=1, help="Rows for errors and NTK.", rich_help_panel=RUN)] = 64,
    seed: Seed = DEFAULTS.seed,
    device: Device = "cpu",
    out: Annotated[
        Path,
        typer.Option(help="Folder of results. What it holds already is not measured again.", rich_help_panel=OUTPUT),
    ] = Path("comparison"),
    as_json: Json = False,
) -> None:
    """Compare fusion with its rivals on MODEL and your texts: a table, pictures and a page.

    Each finished method is kept at once: stop with Ctrl-C when you like, and the same command goes on from there.
    """
    check_device(device)
    if (texts is None) == (dataset is None):
        raise DataError("give --texts FILE or --dataset NAME, one of the two")
    config = FusionConfig(parse_width(width), parse_layers(layers), targets, seed=seed)
    chosen = parse_names(methods)

    from transformers.utils import logging as transformers_logging

    from ..comparison import check_comparison_folder, check_methods, load_subject, print_table, write_report
    from ..comparison import compare as run
    from ..data import read_texts

    check_methods(chosen)
    out = out.expanduser()
    check_comparison_folder(out)
    source = str(texts or dataset)
    console = Console(stderr=True, highlight=False)
    lines = read_texts(texts or dataset or "", column=column, split=split)
    subject = load_subject(model, lines, data=source, head=head, samples=samples, seed=seed, device=device)
    try:
        with transformers_logging.tqdm(total=len(chosen) + 1, desc="Comparing", unit="model") as progress:
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
