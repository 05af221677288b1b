"""Tables of the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..recipe import FusionReport

__all__ = ["megabytes", "print_report"]


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:,.1f} MB"


def print_report(report: FusionReport, console: Console) -> None:
    """Prints a receipt: a row a fused FFN, what was skipped and why, and the totals.

    Args:
        report: The receipt.
        console: Where to.
    """
    table = Table(title=f"Fused {report.source.get('name_or_path') or report.source.get('architecture')}")
    table.add_column("FFN", overflow="fold")  # the only column that gives way on a narrow terminal
    calibrated = any(ffn.tokens for ffn in report.ffns)
    for header in ["units", "inertia\nlost", "largest\ncluster", *(["how", "error\nleft"] if calibrated else [])]:
        table.add_column(header, justify="right", no_wrap=True)
    for ffn in report.ffns:
        error = "–" if ffn.calibration_error is None else f"{ffn.calibration_error:.3f}"
        table.add_row(
            ffn.name,
            f"{ffn.original_width} → {ffn.width}",
            "–" if ffn.inertia_share is None else f"{ffn.inertia_share:.1%}",
            "–" if ffn.largest_cluster is None else str(ffn.largest_cluster),
            *([ffn.method, error] if calibrated else []),
        )
    console.print(table)
    for reason, names in report.skipped_names.items():
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        console.print(f"Left as they were: {len(names)} FFNs ({span}): {reason}", markup=False)
    saved = 1 - report.parameters_after / report.parameters_before
    console.print(
        f"Parameters: {report.parameters_before:,} → {report.parameters_after:,} ({saved:.1%} fewer); "
        f"size: {megabytes(report.bytes_before)} → {megabytes(report.bytes_after)}; "
        f"{report.fused_share:.1%} of the FFN parameters fused in {report.seconds:.1f} s"
    )
    for tuning in report.tuning:
        console.print(f"Tuned since on {tuning.target} ({tuning.trained}): {tuning.steps} steps")
