"""Which way imports point, and how long a file may be."""

from __future__ import annotations

import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from architecture import LAYERS, PACKAGE, imports, layer_of, table

IMPORTS = imports()
FILES = ("late_imports", "errors")
"""The layers that are one file, the lowest ones."""


def test_the_listing_shows_the_layers():
    assert {path.name for path in PACKAGE.iterdir()} - {"__pycache__"} == {
        "__init__.py",
        "py.typed",
        *(f"{name}.py" for name in FILES),
        *(name for name in LAYERS if name not in FILES),
    }
    for name in LAYERS[len(FILES) :]:
        assert (PACKAGE / name / "__init__.py").is_file(), name


def test_no_import_runs_upwards():
    """Also inside functions. The package itself shows everything, and is imported for its version alone."""
    wrong = [
        f"{item.importer}:{item.line} imports {item.imported}"
        for item in IMPORTS
        if item.own and item.importer and item.name != "__version__"
        if LAYERS.index(layer_of(item.importer)) < LAYERS.index(layer_of(item.imported))
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_import_each_other_in_no_circle():
    """Also inside functions; `graphlib` raises with the circle."""
    graph = defaultdict(set)
    for item in IMPORTS:
        if item.own and item.importer and item.imported and item.importer != item.imported:
            graph[item.importer].add(item.imported)
    list(TopologicalSorter(graph).static_order())


def test_tensor_functions_know_only_tensors():
    outside = {
        item.imported.split(".")[0]
        for item in IMPORTS
        if not item.own and layer_of(item.importer or "errors") == "tensors"
    }
    assert outside - sys.stdlib_module_names <= {"fastcluster", "numpy", "scipy", "sklearn", "threadpoolctl", "torch"}


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("transformers", {*LAYERS} - {*FILES, "tensors", "files", "recipe", "metrics"}),
        ("typer", {"cli"}),
        ("matplotlib", {"hub", "comparison"}),
        ("evaluate", {"metrics"}),
    ],
)
def test_libraries_stay_in_their_layers(library, layers):
    for item in IMPORTS:
        if item.importer and not item.own and item.imported.split(".")[0] == library:
            assert layer_of(item.importer) in layers, f"{item.importer}:{item.line}"


@pytest.mark.parametrize(("folder", "limit"), [(PACKAGE, 300), (Path(__file__).parent, 340)])
def test_files_stay_small(folder, limit):
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def test_the_design_page_has_the_table():
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    assert table() in page, "run `python tests/architecture.py` and put what it prints into docs/design.md"
