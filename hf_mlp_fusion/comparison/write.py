"""What a comparison leaves in its folder beside its rows: table, pictures, page."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import FusionConfigError
from ..files import check_writable, write_text
from .results import RESULTS_NAME, has_kernel, read_kernel, read_rows
from .row import Row
from .table import columns, describe, latest_comparison, markdown_table, not_shown, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """Draws what the rows have, but for pictures that are younger than all rows; returns captions and files."""
    place, rows_written = folder / "pictures", (folder / RESULTS_NAME).stat().st_mtime_ns
    place.mkdir(exist_ok=True)
    written = []
    for caption, name, draw in _figures(folder, [row for row in rows if row.refused is None]):
        path = place / f"{name}.png"
        if not path.is_file() or path.stat().st_mtime_ns <= rows_written:
            from . import pictures  # matplotlib takes a second, and reading results need not wait for it

            figure = draw(pictures)
            if figure is None:
                continue
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                pictures.save(figure, Path(temporary) / "picture.png")
                (Path(temporary) / "picture.png").replace(path)
        written.append((caption, path))
    return written


def _figures(folder: Path, rows: list[Row]) -> Iterator[tuple[str, str, Callable[[Any], Figure | None]]]:
    """Caption and name of each picture, and what draws it."""
    if by_ffn := [row for row in rows if row.output_errors]:
        caption = "Output error by FFN, on the original's inputs"
        yield caption, "output_error", lambda pictures: pictures.draw_errors(by_ffn, kernel=False)
    if with_kernels := [row for row in rows if row.ntk_errors]:
        caption = "Error of the Adam NTK by FFN"
        yield caption, "ntk_error", lambda pictures: pictures.draw_errors(with_kernels, kernel=True)
    if any(has_kernel(folder, row.key) for row in rows):
        caption = "Adam NTK over the FFNs: a row and a column a sample, one colour scale"
        yield caption, "ntk", lambda pictures: _kernels(folder, rows, pictures)
    if clustered := [row for row in rows if row.clusters]:
        yield "Cluster sizes, a line an FFN", "clusters", lambda pictures: pictures.draw_clusters(clustered)
    caption = "Size and latency; the error bars span the quartiles"
    yield caption, "costs", lambda pictures: pictures.draw_costs(rows)


def _kernels(folder: Path, rows: list[Row], pictures: Any) -> Figure | None:
    """Kernels beside the original's; None where there is none of it, or none besides."""
    blocks = {row.method: kernel for row in rows if (kernel := read_kernel(folder, row.key))}
    kernels: dict[str, Any] = {method: sum(kernel.values()) for method, kernel in blocks.items()}
    original = kernels.pop("original", None)
    few = {name: kernels[name] for name in _FEW_KERNELS if name in kernels} or kernels
    figure: Figure | None = pictures.draw_kernels(original, few) if original is not None and few else None
    return figure


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
