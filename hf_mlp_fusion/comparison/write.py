"""What a comparison leaves in its folder beside its rows: table, pictures, page."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import FusionConfigError
from ..files import check_writable, write_text
from .pictures import draw_clusters, draw_costs, draw_errors, draw_kernels, save
from .results import RESULTS_NAME, read_kernel, read_rows
from .row import Row
from .table import columns, describe, latest_comparison, markdown_table, not_shown, title

__all__ = ["PAGE_NAME", "check_comparison_folder", "write_report"]

PAGE_NAME = "index.html"
_FEW_KERNELS = (
    "fusion",
    "fusion_calibrated",
    "cluster",
    "svd",
    "prune",
)  # whose heat maps are drawn: more would be too small to read


def write_report(folder: Path, command: str | None = None) -> list[Row]:
    """Writes `comparison.md`, `comparison.json`, `pictures/` and `index.html` from a folder's finished rows.

    Args:
        folder: The folder of a comparison.
        command: The command that made it, to be shown beside the table; if not given, the one shown before.

    Returns:
        The rows of the table.

    Raises:
        DataError: The folder has no finished row.
    """
    every = read_rows(folder)
    rows, others = latest_comparison(every), not_shown(every)
    command_file = folder / "command.txt"
    if command is not None:
        write_text(command_file, command + "\n")
    shown = command_file.read_text(encoding="utf-8").strip() if command_file.is_file() else ""
    heading = f"```\n{shown}\n```\n\n" if shown else ""
    write_text(folder / "comparison.md", heading + markdown_table(rows, others))
    write_text(folder / "comparison.json", json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    pictures = _draw(folder, rows)
    write_text(folder / PAGE_NAME, _page(rows, shown, pictures, others))
    return rows


def check_comparison_folder(folder: Path) -> None:
    """Refuses, before any work is done, a folder that holds something else than a comparison.

    Args:
        folder: The folder to write to; it need not be there.

    Raises:
        FusionConfigError: It is one, or cannot be written.
    """
    if folder.is_file():
        raise FusionConfigError(f"{folder} is a file; name a folder")
    check_writable(folder / RESULTS_NAME)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULTS_NAME).is_file():
        raise FusionConfigError(f"{folder} is not empty, and holds no comparison: name another folder with --out")


def _draw(folder: Path, rows: list[Row]) -> list[tuple[str, Path]]:
    """Draws what the rows have; returns captions and files."""
    measured = [row for row in rows if row.refused is None]
    figures = []
    if by_ffn := [row for row in measured if row.output_errors]:
        figures.append(
            ("Output error by FFN, on the original's inputs", "output_error", draw_errors(by_ffn, kernel=False))
        )
    if by_ffn := [row for row in measured if row.ntk_errors]:
        figures.append(("Error of the Adam NTK by FFN", "ntk_error", draw_errors(by_ffn, kernel=True)))
    blocks = {row.method: kernel for row in measured if (kernel := read_kernel(folder, row.key))}
    kernels = {method: np.sum(list(kernel.values()), axis=0) for method, kernel in blocks.items()}
    original = kernels.pop("original", None)
    few = {name: kernels[name] for name in _FEW_KERNELS if name in kernels} or kernels
    if original is not None and few:
        caption = "Adam NTK over the FFNs: a row and a column a sample, one colour scale"
        figures.append((caption, "ntk", draw_kernels(original, few)))
    if clustered := [row for row in measured if row.clusters]:
        figures.append(("Cluster sizes, a line an FFN", "clusters", draw_clusters(clustered)))
    figures.append(("Size and latency; the error bars span the quartiles", "costs", draw_costs(measured)))
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    written = []
    for caption, name, figure in figures:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            save(figure, Path(temporary) / "picture.png")
            written.append((caption, (Path(temporary) / "picture.png").replace(place / f"{name}.png")))
    return written


def _page(rows: list[Row], command: str, pictures: list[tuple[str, Path]], others: list[str]) -> str:
    """One HTML page with everything in it: no script, no font, no address outside."""
    environment = Environment(
        loader=PackageLoader("hf_mlp_fusion.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = columns(rows)
    return environment.get_template("page.html.jinja").render(
        heading=rows[0].about["model"],
        about=[*describe(rows[0]), *others],
        command=command,
        headers=list(shown),
        rows=[(title(row.method), [get(row) for get in shown.values()]) for row in rows if row.refused is None],
        refused=[(title(row.method), row.refused) for row in rows if row.refused is not None],
        pictures=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in pictures],
    )
