"""`hf-mlp-fusion inspect`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from ..errors import BrokenCheckpointError
from ..report import REPORT_NAME, FusionReport
from .tables import print_report

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(help="A fused folder, or the Hub id of a fused model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Show what fusion did to a model: widths, clusters, sizes. Nothing is loaded or executed."""
    report = read_report(path)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        print_report(report, Console(highlight=False))


def read_report(path: str) -> FusionReport:
    """Reads the receipt of a fused folder or repository, and checks it against the config.

    Raises:
        BrokenCheckpointError: It has no receipt, or one that does not fit its config.
    """
    from ..folders import locate_file
    from ..section import FusionSection

    config_file = locate_file(path, "config.json")
    if config_file is None:
        raise BrokenCheckpointError(f"{path} is not a model folder: it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BrokenCheckpointError(f"{config_file} is not JSON: {error}") from error
    if not isinstance(config, dict) or "mlp_fusion" not in config:
        raise BrokenCheckpointError(f"{path} is not a fused model; fuse it with `hf-mlp-fusion fuse {path} OUT`")
    section = FusionSection.from_dict(config["mlp_fusion"])
    report_file = locate_file(path, REPORT_NAME)
    if report_file is None:
        raise BrokenCheckpointError(f"{path} is fused, but its receipt {REPORT_NAME} is missing")
    report = FusionReport.from_file(report_file)
    if {ffn.name: ffn.width for ffn in report.ffns} != {name: ffn.width for name, ffn in section.ffns.items()}:
        raise BrokenCheckpointError(f"{report_file} does not fit config.json: it is the receipt of another fusion")
    return report
