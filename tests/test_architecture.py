"""Which way imports point, and how long a file may be."""

from __future__ import annotations

import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from architecture import LAYERS, PACKAGE, imports, layer_of, modules, table

IMPORTS = imports()

UPWARD = {
    # A model writes its own card and stub when it is pushed or saved; both only know what was saved.
    ("modeling", "hub"),
    ("registration", "hub.stub"),
}
"""Imports against the layers that are meant, all inside functions."""


def test_each_module_has_a_layer():
    named = {name for layer in LAYERS.values() for name in layer.modules}
    assert named == {name.partition(".")[0] for name in modules()} - {""}


def test_layers_are_listed_lowest_first():
    names = list(LAYERS)
    for index, (name, layer) in enumerate(LAYERS.items()):
        assert layer.may_import <= set(names[:index]), name


def test_imports_follow_the_layers():
    wrong, meant = [], set()
    for item in IMPORTS:
        if not item.own or not item.importer or item.name == "__version__":
            continue  # the package itself shows everything, and is imported for its version alone
        importer, imported = layer_of(item.importer), layer_of(item.imported)
        if importer == imported or imported in LAYERS[importer].may_import:
            continue
        if (item.importer, item.imported) in UPWARD and not item.at_import:
            meant.add((item.importer, item.imported))
        else:
            wrong.append(f"{item.importer}:{item.line} ({importer}) imports {item.imported} ({imported})")
    assert not wrong, "\n".join(wrong)
    assert meant == UPWARD


def test_modules_import_each_other_in_no_circle():
    """At import, that is; `graphlib` raises with the circle."""
    graph = defaultdict(set)
    for item in IMPORTS:
        if item.own and item.at_import and item.imported and item.importer != item.imported:
            graph[item.importer].add(item.imported)
    list(TopologicalSorter(graph).static_order())


def test_tensor_functions_know_only_tensors():
    outside = {
        item.imported.split(".")[0]
        for item in IMPORTS
        if not item.own and layer_of(item.importer or "errors") == "tensors"
    }
    assert outside - sys.stdlib_module_names <= {"numpy", "scipy", "sklearn", "threadpoolctl", "torch"}


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("transformers", {*LAYERS} - {"errors", "tensors", "files", "recipe", "metrics"}),
        ("typer", {"cli"}),
        ("matplotlib", {"hub", "studies"}),
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
