"""`hf-mlp-fusion export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..files import check_output_folder
from .options import Dtype, FusedModel, Json, NewFolder, Overwrite, check_dtype
from .tables import megabytes

if TYPE_CHECKING:
    from ..export import ExportReport

__all__ = ["export"]


def export(
    path: FusedModel,
    out: NewFolder,
    pad: Annotated[
        bool, typer.Option("--pad", help="Fill narrower FFNs up to the width of the largest, with zero units.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx (float32) besides, and check it.")] = False,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a fused MODEL as its stock class, for inference by whatever does not know this package."""
    check_dtype(dtype)
    check_output_folder(out, overwrite=overwrite, source=path)

    import torch

    from ..export import export_plain

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that it does not need
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    report = export_plain(path, out, pad=pad, onnx=onnx, dtype=chosen, overwrite=overwrite)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report, out, Console(highlight=False))


def _print(report: ExportReport, out: Path, console: Console) -> None:
    widths = ", ".join(f"{field}={width}" for field, width in report.widths.items())
    console.print(
        f"{report.architecture} with {widths} in {report.dtype}: "
        f"{report.parameters:,} parameters, {megabytes(report.bytes)}",
        markup=False,
    )
    if report.padded:
        console.print(
            f"{len(report.padded)} FFNs filled up with zero units: {report.padding_parameters:,} parameters "
            f"({megabytes(report.padding_bytes)}) more than the fused model"
        )
    if report.parameters_original is not None:
        console.print(f"{report.parameters / report.parameters_original:.1%} of the parameters before fusion")
    if report.onnx_error is not None:
        console.print(f"model.onnx: outputs within {report.onnx_error:.0e} of the export's, relative to the largest")
    console.print(
        f"Saved in {out}. It loads without hf_mlp_fusion. P is in the weights: where the fused model keeps it apart "
        "(power above 0), this one is for inference, and that one to fine-tune.",
        markup=False,
    )
