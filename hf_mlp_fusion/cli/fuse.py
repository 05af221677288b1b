"""`hf-mlp-fusion fuse`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..atomic import check_output_folder, output_folder
from ..clustering import CLUSTERINGS
from ..config import NTKS, REFITS, SELECTIONS, TARGETS, FusionConfig
from ..errors import FusionConfigError
from .tables import print_report

__all__ = ["check_dtype", "fuse", "parse_layers", "parse_width"]

_DEFAULTS = FusionConfig()


def fuse(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model to fuse.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be empty or not there.")],
    width: Annotated[
        str,
        typer.Option(help="Units to keep (384), a share (0.25), pairs such as 'h.1?.mlp=0.25', or auto:0.25."),
    ] = str(_DEFAULTS.width),
    layers: Annotated[
        str,
        typer.Option(help="Layers to fuse: all, last:8, first:4, a range 4:12, numbers 4,5,6, or name patterns."),
    ] = str(_DEFAULTS.layers),
    targets: Annotated[
        str, typer.Option(help=f"{', '.join(TARGETS)}. auto: experts where there are any, else dense FFNs.")
    ] = _DEFAULTS.targets,
    clustering: Annotated[str, typer.Option(help=f"{', '.join(CLUSTERINGS)}.")] = _DEFAULTS.clustering,
    selection: Annotated[
        str, typer.Option(help=f"{', '.join(SELECTIONS)}. auto: obs with calibration data, clusters without.")
    ] = _DEFAULTS.selection,
    refit: Annotated[
        str, typer.Option(help=f"{', '.join(REFITS)}. auto: output with calibration data, none without.")
    ] = _DEFAULTS.refit,
    ntk: Annotated[
        str, typer.Option(help=f"{', '.join(NTKS)}. auto: match with obs, none with clusters.")
    ] = _DEFAULTS.ntk,
    texts: Annotated[
        Path | None,
        typer.Option(help="Calibration data: a file with a text a line, or parquet, csv or json with a text column."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Calibration data instead: a data set, its configuration behind a colon.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Calibrate without data: on what the language model writes itself.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the clustering, where it has any randomness.")] = _DEFAULTS.seed,
    multiple_of: Annotated[
        int, typer.Option(help="Shares are rounded to a multiple of this many units.")
    ] = _DEFAULTS.multiple_of,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="Device to fuse on: cpu, cuda, cuda:1, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model folder OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Fuse the FFNs or experts of MODEL and save the result, tokenizer and all, in OUT."""
    config = FusionConfig(
        parse_width(width), parse_layers(layers), targets, clustering, selection, refit, ntk, seed, multiple_of
    )
    given = [item for item in (texts, dataset, sampled) if item]
    if len(given) > 1:
        raise FusionConfigError("give one of --texts FILE, --dataset NAME and --sampled")
    config.resolved(calibrated=bool(given))
    check_dtype(dtype)
    check_output_folder(out, overwrite=overwrite, source=model)

    from ..calibration import SAMPLED
    from ..data import read_texts
    from ..folders import carry_side_files, load_stock_model
    from ..fuse import fuse_model

    calibration = SAMPLED if sampled else read_texts(str(given[0]), split=split) if given else None
    stock = load_stock_model(model, dtype=dtype, device=device)
    fused = fuse_model(stock, config, calibration=calibration, inplace=True)
    with output_folder(out, overwrite=overwrite) as folder:
        carry_side_files(model, folder)
        fused.save_pretrained(folder)
    report = fused.fusion_report
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    console = Console(highlight=False)
    print_report(report, console)
    console.print(
        f"Saved in {out}. Load it with AutoModel*.from_pretrained after `import hf_mlp_fusion`.", markup=False
    )


def parse_width(text: str) -> int | float | str | dict[str, int | float]:
    """Reads a width as the command line takes it: `384`, `0.25`, `auto:0.25`, or `PATTERN=384,PATTERN=0.25`.

    Raises:
        FusionConfigError: It is none of these.
    """
    if text.startswith("auto:"):
        return text
    if "=" in text:
        pairs = [item.rpartition("=") for item in text.split(",")]
        return {name.strip(): _number(value) for name, _, value in pairs}
    return _number(text)


def parse_layers(text: str) -> str | list[int] | list[str]:
    """Reads layers as the command line takes them: a word or range, numbers or patterns separated by commas."""
    items = [item.strip() for item in text.split(",")]
    if all(re.fullmatch(r"-?\d+", item) for item in items):
        return [int(item) for item in items]
    return items if len(items) > 1 else text


def check_dtype(text: str) -> None:
    """Checks a `--dtype`.

    Raises:
        FusionConfigError: It is none of those that weights are stored in.
    """
    if text not in ("auto", "float32", "bfloat16", "float16"):
        raise FusionConfigError(f"--dtype must be auto, float32, bfloat16 or float16, not {text!r}")


def _number(text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise FusionConfigError(
            f"--width: {text!r} is no number; write units (384), a share (0.25), or pairs such as 'h.1?.mlp=0.25'"
        ) from None
