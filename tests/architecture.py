"""The layers of the package, which may import which, and what its files do import.

Run as a script, it prints the table of `docs/design.md`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = "hf_mlp_fusion"
PACKAGE = Path(__file__).parents[1] / ROOT


@dataclass(frozen=True)
class Layer:
    """A group of modules.

    Args:
        what: What they do.
        modules: Their names below the package; a sub-package stands for all in it.
        may_import: The layers that they may import besides their own.
    """

    what: str
    modules: frozenset[str]
    may_import: frozenset[str]


def _layer(what: str, modules: str, may_import: str = "") -> Layer:
    return Layer(what, frozenset(modules.split()), frozenset(may_import.split()))


_GROUND = "errors tensors files recipe families"
_MODELS = f"{_GROUND} models data measure"

LAYERS = {
    "errors": _layer("what users meet", "errors"),
    "tensors": _layer(
        "the mathematics, on bare tensors", "allocation clustering low_rank moments reduction refit selection"
    ),
    "files": _layer("whole or not at all", "atomic json_files json_lines minilm", "errors"),
    "recipe": _layer("what to fuse, what was fused", "config layers report section", "errors tensors files"),
    "families": _layer("where a family's FFNs are", "families", "errors"),
    "models": _layer(
        "fused models: build, save, load",
        "adapters building compat ffn folders forms headers modeling modules registration saved",
        _GROUND,
    ),
    "data": _layer("texts and batches", "data objectives", "errors models"),
    "measure": _layer("measures", "measure", "errors families models data"),
    "fusing": _layer(
        "from a stock model to a fused one, and out again",
        "calibration driver export folding fuse fusing kernel_size onnx_export plan sampling",
        _MODELS,
    ),
    "baselines": _layer("the rivals", "baselines", f"{_MODELS} fusing"),
    "training": _layer("after fusion", "routers training", f"{_MODELS} fusing"),
    "hub": _layer("cards and pushes", "hub", f"{_GROUND} models"),
    "metrics": _layer("scores of tasks", "metrics", "errors"),
    "studies": _layer(
        "methods side by side", "bench comparison demo", f"{_MODELS} fusing baselines training hub metrics"
    ),
    "cli": _layer("the command line", "cli", f"{_MODELS} fusing baselines training hub studies"),
}
"""The layers, lowest first."""


@dataclass(frozen=True)
class Import:
    """An import of a module of this package, or of another.

    Args:
        importer: Name of the importing module, without the package's.
        imported: Name of the imported module, without the package's where it is of this package.
        name: The imported name; empty where the module itself is imported.
        own: Whether it is of this package.
        at_import: Whether it happens when the importer is imported, not only when a function is called.
        line: Line number.
    """

    importer: str
    imported: str
    name: str
    own: bool
    at_import: bool
    line: int


def modules() -> dict[str, Path]:
    """The files of the package by module name, without the package's: `""`, `"cli"`, `"cli.fuse"`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> list[Import]:
    """All imports of the package, also those inside functions and those for type checkers alone."""
    known = modules()
    return [item for name, path in known.items() for item in _imports_of(name, path, known)]


def layer_of(module: str) -> str:
    """The layer of a module of this package."""
    top = module.partition(".")[0]
    found = [name for name, layer in LAYERS.items() if top in layer.modules]
    assert len(found) == 1, f"{module!r} is in {found or 'no layer'}: tests/architecture.py has the table"
    return found[0]


def _imports_of(importer: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    own = alias.name.split(".")[0] == ROOT
                    imported = alias.name.removeprefix(ROOT).lstrip(".") if own else alias.name
                    yield Import(importer, imported, "", own, at_import, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                own = child.level > 0 or base.split(".")[0] == ROOT
                if child.level:
                    base = ".".join([*package[: len(package) - child.level + 1], *filter(None, [base])])
                elif own:
                    base = base.removeprefix(ROOT).lstrip(".")
                for alias in child.names:
                    whole = f"{base}.{alias.name}".lstrip(".")
                    if own and whole in known:
                        yield Import(importer, whole, "", own, at_import, child.lineno)
                    else:
                        yield Import(importer, base, alias.name, own, at_import, child.lineno)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from walk(child, at_import and not inside and not checking)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def table() -> str:
    """The layers as a Markdown table, highest first, each with the layers that it does import."""
    used: dict[str, set[str]] = {name: set() for name in LAYERS}
    for item in imports():
        if item.own and item.importer and item.imported:
            used[layer_of(item.importer)].add(layer_of(item.imported))
    rows = ["| layer | modules | imports |", "| --- | --- | --- |"]
    for name, layer in reversed(LAYERS.items()):
        listed = ", ".join(f"`{module}`" for module in sorted(layer.modules))
        below = ", ".join(other for other in reversed(LAYERS) if other in used[name] & layer.may_import)
        rows.append(f"| **{name}**: {layer.what} | {listed} | {below or '–'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201
