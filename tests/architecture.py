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
STUB = PACKAGE / "hub" / "modeling_mlp_fusion.py"
"""No part of the package: a text that is copied into users' folders, and runs there."""


LAYERS = (
    "late_imports",
    "errors",
    "tensors",
    "files",
    "families",
    "recipe",
    "hub",
    "modeling",
    "data",
    "measure",
    "fusion",
    "streaming",
    "export",
    "training",
    "baselines",
    "metrics",
    "comparison",
    "bench",
    "cli",
)
"""The folders of the package (and two single files), lowest first: each may import those before it, no other."""


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
    for path in sorted({*PACKAGE.rglob("*.py")} - {STUB}):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> list[Import]:
    """All imports of the package, also those inside functions and those for type checkers alone."""
    known = modules()
    return [item for name, path in known.items() for item in _imports_of(name, path, known)]


def layer_of(module: str) -> str:
    """The layer of a module of this package: the folder that it lies in."""
    return module.partition(".")[0]


def purpose(layer: str) -> str:
    """What a layer is for: the first line of its docstring."""
    path = modules()[layer]
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


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
    rows = ["| layer | what it is for | imports |", "| --- | --- | --- |"]
    for name in reversed(LAYERS):
        below = ", ".join(other for other in reversed(LAYERS) if other in used[name] - {name})
        rows.append(f"| `{name}` | {purpose(name)} | {below or '–'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201
