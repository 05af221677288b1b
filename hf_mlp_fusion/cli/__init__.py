"""The command line `hf-mlp-fusion`: one file a verb.

May import everything. What is slow to load is imported when a verb runs.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import FusionError, FusionWarning, is_memory_shortage
from . import bench, calibrate, card, compare, demo, export, families, fuse, inspect, push, report, tune
from .options import check_alone
from .piped import lines_where_piped

__all__ = ["app", "main"]

app = typer.Typer(
    name="hf-mlp-fusion",
    help="Fuse the FFNs or experts of Hugging Face models: smaller to fine-tune, loaded as any model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_OF_SEVERAL = ("calibrate", "fuse")  # verbs that the processes of a launch may share
_INTERRUPTED = 130  # the exit code, as shells have it
_MAKE, _LOOK, _SHARE = "Make", "Look and measure", "Share"
for verb, panel in (
    (demo.demo, _MAKE),
    (fuse.fuse, _MAKE),
    (calibrate.calibrate, _MAKE),
    (tune.tune, _MAKE),
    (inspect.inspect, _LOOK),
    (families.families, _LOOK),
    (compare.compare, _LOOK),
    (report.report, _LOOK),
    (export.export, _SHARE),
    (card.card, _SHARE),
    (push.push, _SHARE),
):
    app.command(rich_help_panel=panel)(verb)
app.add_typer(bench.app, name="bench", rich_help_panel=_LOOK)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{app.info.name} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _OF_SEVERAL:
        check_alone(f"hf-mlp-fusion {context.invoked_subcommand}")


def _show_warning(
    console: Console, otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any
) -> None:
    if issubclass(category, FusionWarning):
        console.print(f"[yellow]warning:[/] {escape(str(message))}")
    else:
        otherwise(message, category, *where)


def main() -> None:
    """Runs the command line; errors that a user can mend become one line and exit code 1."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with warnings.catch_warnings(), lines_where_piped():
            warnings.simplefilter("always", FusionWarning)
            warnings.showwarning = functools.partial(_show_warning, console, warnings.showwarning)
            app(prog_name=app.info.name)
    except (FusionError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error).strip())}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_memory_shortage(error):
            raise
        console.print("[red]error:[/] memory has run out; nothing was left half-written")
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer makes it of Ctrl-C
            console.print("stopped; nothing was left half-written")
        raise
