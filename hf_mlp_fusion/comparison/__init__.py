"""Comparing fusion with its rivals on a user's own model and texts: rows, tables, pictures and a page.

May import `baselines`, `measure`, `fusion` and what is below. Its names are imported when used: reading results loads
no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late_imports import when_used

if TYPE_CHECKING:
    from .measuring import Subject, check_methods, compare, load_subject
    from .results import read_rows
    from .row import Row
    from .table import describe, markdown_table, not_shown, print_table
    from .write import check_comparison_folder, write_report

__all__ = [
    "Row",
    "Subject",
    "check_comparison_folder",
    "check_methods",
    "compare",
    "describe",
    "load_subject",
    "markdown_table",
    "not_shown",
    "print_table",
    "read_rows",
    "write_report",
]

__getattr__ = when_used(
    __name__,
    {
        "Row": "row",
        "Subject": "measuring",
        "check_comparison_folder": "write",
        "check_methods": "measuring",
        "compare": "measuring",
        "describe": "table",
        "load_subject": "measuring",
        "markdown_table": "table",
        "not_shown": "table",
        "print_table": "table",
        "read_rows": "results",
        "write_report": "write",
    },
)
