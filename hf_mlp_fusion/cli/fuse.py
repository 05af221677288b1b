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

__all__ = ["fuse", "parse_layers", "parse_width"]

_DEFAULTS = FusionConfig()


def fuse(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model to fuse.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be empty or not there.")],
    width: Annotated[
        str,
        typer.Option(
            help="Units to keep (384), a share (0.25), or pairs of name patterns and either: 'h.1?.mlp=0.25'."
        ),
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
    config.resolved(calibrated=texts is not None or dataset is not None)
    if texts is not None and dataset is not None:
        raise FusionConfigError("give --texts FILE or --dataset NAME, not both")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise FusionConfigError(f"--dtype must be auto, float32, bfloat16 or float16, not {dtype!r}")
    _check_places(model, out)
    check_output_folder(out, overwrite=overwrite)

    from ..data import read_texts
    from ..folders import carry_side_files, load_stock_model
    from ..fuse import fuse_model

    lines = None if texts is None and dataset is None else read_texts(str(texts or dataset), split=split)
    stock = load_stock_model(model, dtype=dtype, device=device)
    fused = fuse_model(stock, config, calibration=lines, inplace=True)
    try:
        with output_folder(out, overwrite=overwrite) as folder:
            carry_side_files(model, folder)
            fused.save_pretrained(folder)
    except FusionConfigError:
        raise
    except Exception as error:
        raise OSError(f"{out} could not be written, and nothing was left behind: {error}") from error
    report = fused.fusion_report
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    console = Console(highlight=False)
    print_report(report, console)
    console.print(
        f"Saved in {out}. Load it with AutoModel*.from_pretrained after `import hf_mlp_fusion`.", markup=False
    )


def parse_width(text: str) -> int | float | dict[str, int | float]:
    """Reads a width as the command line takes it: `384`, `0.25`, or `PATTERN=384,PATTERN=0.25`.

    Raises:
        FusionConfigError: It is none of these.
    """
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


def _number(text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise FusionConfigError(
            f"--width: {text!r} is no number; write units (384), a share (0.25), or pairs such as 'h.1?.mlp=0.25'"
        ) from None


def _check_places(model: str, out: Path) -> None:
    source, target = Path(model).absolute(), out.absolute()
    if source.is_dir() and (target == source or target in source.parents):
        raise FusionConfigError(f"{out} is or holds the model itself; name another folder")
