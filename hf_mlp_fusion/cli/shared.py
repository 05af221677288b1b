"""Options that several commands share as one dataclass, and the decorator that makes options of its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

__all__ = ["takes"]


def takes(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the fields of a dataclass as options, behind its own.

    Args:
        options: The dataclass; its annotations say what typer needs, its defaults are the options' defaults. The
            command gets one of it as its last parameter, `options`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        *own, _ = inspect.signature(command).parameters.values()
        hints = get_type_hints(command, include_extras=True) | get_type_hints(options, include_extras=True)
        shared = {field.name: field.default for field in dataclasses.fields(options)}
        defaults = {item.name: item.default for item in own} | shared

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = options(**{name: values.pop(name) for name in shared})
            command(**values, options=given)

        del run.__wrapped__  # typer is to see the signature made here
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
                for name, default in defaults.items()
            ]
        )
        run.__annotations__ = {name: hints[name] for name in defaults}
        return run

    return decorate
