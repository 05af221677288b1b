"""The arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, FusionConfigError
from ..recipe import TARGETS, FusionConfig

__all__ = [
    "DEFAULTS",
    "HOW",
    "OUTPUT",
    "RIVALS",
    "RUN",
    "TEXTS",
    "TRAINING",
    "WHAT",
    "BaseModel",
    "BatchSize",
    "Column",
    "Dataset",
    "Device",
    "Dtype",
    "FusedFolder",
    "FusedModel",
    "Json",
    "Layers",
    "License",
    "LicenseNote",
    "MaxLength",
    "NewFolder",
    "Overwrite",
    "Sampled",
    "Seed",
    "Split",
    "StockModel",
    "Targets",
    "Texts",
    "Width",
    "check_alone",
    "check_device",
    "check_dtype",
    "check_one_source",
    "given_texts",
    "parse_layers",
    "parse_names",
    "parse_power",
    "parse_width",
]

DEFAULTS = FusionConfig()
WHAT, HOW, TEXTS, TRAINING, RUN, OUTPUT = "What to fuse", "How", "Texts", "Training", "Run", "Output"
"""Panels of the help, in this order."""

RIVALS = "fusion, fusion_kmeans, fusion_calibrated, cluster, svd, sketch, mmd, prune, ntk_sap, layer_drop"
"""The methods that are compared if none are named: keys of `hf_mlp_fusion.baselines.METHODS`."""

StockModel = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of the model to fuse.")]
FusedModel = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a fused model.")]
FusedFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a fused model.")]
NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write. It must be empty or not there.")]

BatchSize = Annotated[int, typer.Option(min=1, help="Rows a step.", rich_help_panel=TRAINING)]
MaxLength = Annotated[int, typer.Option(min=8, help="Tokens a row, at most.", rich_help_panel=TRAINING)]

Width = Annotated[
    str,
    typer.Option(
        help="Units to keep (384), a share (0.25), or pairs such as 'h.1?.mlp=0.25,h.*=0.5'.", rich_help_panel=WHAT
    ),
]
Layers = Annotated[
    str,
    typer.Option(
        help="all, last:8, first:4, a range 4:12, numbers 4,5,6, or patterns of FFN names.", rich_help_panel=WHAT
    ),
]
Targets = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(TARGETS)}. auto: experts where there are any, else dense FFNs.", rich_help_panel=WHAT
    ),
]

Texts = Annotated[
    Path | None,
    typer.Option(help="File: a text a line, or parquet, csv or json with a column of texts.", rich_help_panel=TEXTS),
]
Dataset = Annotated[
    str | None,
    typer.Option(help="Data set instead: a name, its configuration behind a colon.", rich_help_panel=TEXTS),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of texts.",
        show_default="the first of text, sentence, sentence1, content",
        rich_help_panel=TEXTS,
    ),
]
Sampled = Annotated[
    bool,
    typer.Option("--sampled", help="Without texts: on what the language model writes itself.", rich_help_panel=TEXTS),
]
Split = Annotated[str, typer.Option(help="Split of the data set.", rich_help_panel=TEXTS)]

Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that has any randomness.", rich_help_panel=RUN)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=RUN)]

Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model folder OUT.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]

License = Annotated[
    str | None, typer.Option(help="Licence, as the Hub calls it.", show_default="that of the base model's card")
]
LicenseNote = Annotated[str, typer.Option(help="A sentence on the licence, for the card.", show_default=False)]
BaseModel = Annotated[
    str | None, typer.Option(help="Hub id of the model that was fused.", show_default="that in the receipt")
]


def check_one_source(texts: Path | None, dataset: str | None, sampled: bool) -> None:
    """Checks that a command that needs data has them from one place.

    Args:
        texts: `--texts`.
        dataset: `--dataset`.
        sampled: `--sampled`.

    Raises:
        DataError: From none, or from several.
    """
    if sum(map(bool, (texts, dataset, sampled))) != 1:
        raise DataError("give --texts FILE or --dataset NAME, or --sampled, one of the three")


def given_texts(texts: Path | None, dataset: str | None, sampled: bool, column: str | None, split: str) -> Any:
    """What `calibration=` and `texts=` take of the options on data: texts, `SAMPLED`, or None where there are none.

    Args:
        texts: `--texts`.
        dataset: `--dataset`.
        sampled: `--sampled`.
        column: `--column`.
        split: `--split`.
    """
    if source := texts or dataset:
        from ..data import read_texts

        return read_texts(source, column=column, split=split)
    if not sampled:
        return None
    from ..fusion import SAMPLED

    return SAMPLED


def parse_names(text: str) -> list[str]:
    """Reads names separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


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


def parse_power(text: str) -> float | str:
    """Reads a power of P as the command line takes it: a number, or `auto`, which the recipe checks."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_layers(text: str) -> str | list[int] | list[str]:
    """Reads layers as the command line takes them: a word or range, numbers or patterns separated by commas."""
    items = [item.strip() for item in text.split(",")]
    if all(re.fullmatch(r"-?\d+", item) for item in items):
        return [int(item) for item in items]
    return items if len(items) > 1 else text


def check_alone(what: str) -> None:
    """Checks that something that processes do not share was not launched as several, which would write to one place.

    Args:
        what: What they would do.

    Raises:
        FusionConfigError: It was.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if count > 1:
        raise FusionConfigError(
            f"each of {count} processes would do all of `{what}`: start it without a launcher (calibrate and fuse "
            "--stream are shared by processes)"
        )


def check_device(text: str) -> None:
    """Checks that there is the `--device`.

    Raises:
        FusionConfigError: There is not.
    """
    if text != "cpu":
        import torch

        try:
            torch.zeros(1, device=text).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            fault = str(error).strip().splitlines()[0]
            raise FusionConfigError(f"--device {text} cannot be used here: {fault:.200}") from error


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
            f"--width: {text!r} is no number; write units (384), a share (0.25), auto:0.25, or pairs such as "
            "'h.1?.mlp=0.25'"
        ) from None
