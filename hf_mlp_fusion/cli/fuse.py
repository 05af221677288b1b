"""`hf-mlp-fusion fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import FusionConfigError
from ..files import check_output_folder, output_folder
from ..recipe import CLUSTERINGS, METRICS, NTKS, REFITS, SELECTIONS, FusionConfig
from .options import (
    DEFAULTS,
    HOW,
    OUTPUT,
    RUN,
    TEXTS,
    WHAT,
    Column,
    Dataset,
    Device,
    Dtype,
    Json,
    Layers,
    NewFolder,
    Overwrite,
    Sampled,
    Seed,
    Split,
    StockModel,
    Targets,
    Texts,
    check_alone,
    check_device,
    check_dtype,
    given_texts,
    parse_layers,
    parse_power,
    parse_width,
)
from .tables import print_report

__all__ = ["fuse"]


def fuse(
    model: StockModel,
    out: NewFolder,
    width: Annotated[
        str,
        typer.Option(
            help="Units to keep (384), a share (0.25), pairs such as 'h.1?.mlp=0.25,h.*=0.5', or auto:0.25, that "
            "share of all units, given to the FFNs that need them most.",
            rich_help_panel=WHAT,
        ),
    ] = str(DEFAULTS.width),
    layers: Layers = str(DEFAULTS.layers),
    targets: Targets = DEFAULTS.targets,
    multiple_of: Annotated[
        int, typer.Option(help="Shares are rounded to a multiple of this many units.", rich_help_panel=WHAT)
    ] = DEFAULTS.multiple_of,
    texts: Texts = None,
    dataset: Dataset = None,
    split: Split = "train",
    column: Column = None,
    sampled: Sampled = False,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="Without texts: on statistics of the model, which `calibrate` has made.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    clustering: Annotated[
        str, typer.Option(help=f"{', '.join(CLUSTERINGS)}.", rich_help_panel=HOW)
    ] = DEFAULTS.clustering,
    selection: Annotated[
        str,
        typer.Option(help=f"{', '.join(SELECTIONS)}. auto: obs with texts, clusters without.", rich_help_panel=HOW),
    ] = DEFAULTS.selection,
    refit: Annotated[
        str,
        typer.Option(help=f"{', '.join(REFITS)}. auto: output with texts, none without.", rich_help_panel=HOW),
    ] = DEFAULTS.refit,
    ntk: Annotated[
        str, typer.Option(help=f"{', '.join(NTKS)}. auto: match with obs and power 1, else none.", rich_help_panel=HOW)
    ] = DEFAULTS.ntk,
    power: Annotated[
        str,
        typer.Option(
            help="Power of the cluster sizes that stands apart as P: 1 as in the paper, 0 for none. auto: 0 with "
            "texts, 1 without.",
            rich_help_panel=HOW,
        ),
    ] = str(DEFAULTS.power),
    metric: Annotated[
        str,
        typer.Option(help=f"{', '.join(METRICS)}. auto: loss for language models with texts.", rich_help_panel=HOW),
    ] = DEFAULTS.metric,
    seed: Seed = DEFAULTS.seed,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="For a model that does not fit into memory: FFN by FFN, from its shards to those of the result.",
            rich_help_panel=RUN,
        ),
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            help="Size of a file of weights, at most.", show_default="50GB, with --stream 5GB", rich_help_panel=OUTPUT
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse the FFNs or experts of MODEL and save the result, tokenizer and all, in OUT.

    Give a few hundred texts like those that the model will see: calibrated on them, it keeps the output far better.
    What is stopped with --stream goes on when the same command is given again: until it is done, that lies in
    OUT.streaming.
    """
    check_device(device)
    config = FusionConfig(
        width=parse_width(width),
        layers=parse_layers(layers),
        targets=targets,
        clustering=clustering,
        selection=selection,
        refit=refit,
        ntk=ntk,
        seed=seed,
        multiple_of=multiple_of,
        metric=metric,
        power=parse_power(power),
    )
    given = [item for item in (texts, dataset, sampled, statistics) if item]
    if len(given) > 1:
        raise FusionConfigError("give one of --texts FILE, --dataset NAME, --sampled and --statistics FOLDER")
    if stream and given and statistics is None:
        raise FusionConfigError(
            "--stream never runs the model: make statistics of the texts first, with hf-mlp-fusion calibrate, and "
            "give --statistics FOLDER"
        )
    if not stream:
        check_alone("hf-mlp-fusion fuse without --stream")
    config.resolved(calibrated=bool(given))
    check_dtype(dtype)
    check_output_folder(out, overwrite=overwrite, source=model)

    from ..hub import add_stub

    if stream:
        from ..data import Processes
        from ..streaming import fuse_checkpoint

        report = fuse_checkpoint(
            model,
            out,
            config,
            statistics=statistics,
            dtype=dtype,
            device=device,
            max_shard_size=max_shard_size or "5GB",
            overwrite=overwrite,
        )
        if not Processes(device).first:
            return
        add_stub(out)
    else:
        from ..data import save_carrying
        from ..fusion import Statistics, check_smaller, fuse_model
        from ..hub import check_folder, check_side_files
        from ..modeling.loading import load_stock_model

        calibration = given_texts(texts, dataset, sampled, column, split)
        if statistics is not None:
            calibration = Statistics(statistics)
        stock = load_stock_model(model, dtype=dtype, device=device)
        check_side_files(model)
        check_smaller(stock, config)
        fused = fuse_model(stock, config, calibration=calibration, inplace=True)
        with output_folder(out, overwrite=overwrite) as folder:
            save_carrying(fused, model, folder, max_shard_size=max_shard_size or "50GB")
            add_stub(folder)
            check_folder(folder)
        report = fused.fusion_report
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    console = Console(highlight=False)
    print_report(report, console)
    console.print(
        f"Saved in {out}. Load it with AutoModel*.from_pretrained after `import hf_mlp_fusion`.", markup=False
    )
