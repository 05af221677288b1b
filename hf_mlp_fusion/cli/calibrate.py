"""`hf-mlp-fusion calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..files import check_writable
from ..recipe import METRICS
from .options import (
    HOW,
    RUN,
    Column,
    Dataset,
    Device,
    Dtype,
    Json,
    Sampled,
    Seed,
    Split,
    StockModel,
    Texts,
    check_device,
    check_dtype,
    check_one_source,
    given_texts,
)

__all__ = ["calibrate"]


def calibrate(
    model: StockModel,
    out: Annotated[Path, typer.Argument(metavar="STATS", help="Folder for the statistics.")],
    texts: Texts = None,
    dataset: Dataset = None,
    split: Split = "train",
    column: Column = None,
    sampled: Sampled = False,
    metric: Annotated[
        str, typer.Option(help=f"{', '.join(METRICS)}. auto: loss for language models.", rich_help_panel=HOW)
    ] = "auto",
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Layer by layer, the others on disk, though the model may fit; done by itself where it does not.",
            rich_help_panel=RUN,
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Write into STATS what fusing MODEL on texts needs to know of it, also of a model that does not fit into memory.

    `fuse MODEL OUT --statistics STATS` then makes what `fuse --texts` makes (but for --ntk match), as often as one
    likes. What is stopped goes on when the same command is given again.
    """
    check_device(device)
    check_dtype(dtype)
    check_one_source(texts, dataset, sampled)
    check_writable(out)

    from ..data import Processes
    from ..fusion import calibrate_checkpoint, calibrate_model
    from ..modeling.loading import fits, load_stock_model

    data = given_texts(texts, dataset, sampled, column, split)
    processes = Processes(device)
    if offload or processes.count > 1 or not fits(model, device):
        made = calibrate_checkpoint(model, out, data, metric=metric, seed=seed, dtype=dtype, device=device)
    else:
        stock = load_stock_model(model, dtype=dtype, device=device)
        made = calibrate_model(stock, out, data, metric=metric, seed=seed)
    header = made.header
    if not processes.first:
        return
    if as_json:
        typer.echo(header.to_json(), nl=False)
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{len(header.ffns)} FFNs on {header.tokens} tokens of {header.rows} rows. Fuse on them with\n"
        f"  hf-mlp-fusion fuse {model} OUT --statistics {out}",
        markup=False,
    )
