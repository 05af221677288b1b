"""The picture of a card: what fusion cost each FFN."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..recipe import FusionReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURE_NAME", "draw_receipt", "picture_bytes"]

PICTURE_NAME = "fusion_errors.png"
_MOST_LABELS = 48  # more would not be legible


def draw_receipt(report: FusionReport) -> Figure | None:
    """Draws the error of each fused FFN on the calibration data, or without any the variance that its clusters lose.

    Args:
        report: The receipt.

    Returns:
        The picture; None where the receipt knows neither (the baselines').
    """
    from matplotlib.figure import Figure  # half a second, which saving a model need not wait for

    calibrated = any(ffn.calibration_error is not None for ffn in report.ffns)
    values = {ffn.name: ffn.calibration_error if calibrated else ffn.inertia_share for ffn in report.ffns}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    labels = list(known) if len(known) <= _MOST_LABELS else []
    figure = Figure(figsize=(8, 0.9 + 0.18 * min(len(known), _MOST_LABELS)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(known)), list(known.values()), color="tab:blue")
    axes.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)  # names of others are no formulas
    axes.set_ymargin(0.01)
    axes.invert_yaxis()
    axes.set_xlabel("relative output error on the calibration data" if calibrated else "share of variance lost")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def picture_bytes(report: FusionReport) -> bytes | None:
    """The picture as PNG, opaque, so that it is legible on dark pages too."""
    figure = draw_receipt(report)
    if figure is None:
        return None
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, facecolor="white", format="png", metadata={"Software": None})
    return stream.getvalue()
