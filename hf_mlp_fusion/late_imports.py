"""Imports that wait: for the first use of a name, or for another module to be imported first."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["after_import", "when_used"]


def when_used(package: str, files: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a package whose names are imported when first used (PEP 562).

    Args:
        package: Name of the package.
        files: For each of its names, the module of the package that has it.
    """

    def get(name: str) -> Any:
        if name in files:
            return getattr(importlib.import_module(f".{files[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def after_import(name: str, action: Callable[[], object]) -> None:
    """Calls a function as soon as a module has been imported, by whomever: now, if it has been.

    It is Python's own import hook that waits (a finder on `sys.meta_path`); the module is left as it is.

    Args:
        name: Full name of the module.
        action: The function. It is called once.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting(MetaPathFinder):
    """Finds one module as the other finders do, with a loader that tells of it."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Telling(spec.loader, self._imported)
        return spec

    def _imported(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.action()


class _Telling(Loader):
    """Loads a module as its own loader does, gives that one back to it, and tells."""

    def __init__(self, loader: Loader, done: Callable[[], None]) -> None:
        self.loader, self.done = loader, done

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.done()
