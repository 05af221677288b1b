"""`hf-mlp-fusion bench`: fine-tune after fusion and after its rivals, and tabulate."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import DataError, FusionConfigError
from ..files import check_writable
from ..recipe import FusionConfig
from .cost import cost
from .options import (
    DEFAULTS,
    OUTPUT,
    RIVALS,
    RUN,
    TRAINING,
    BatchSize,
    Json,
    Layers,
    MaxLength,
    Targets,
    Width,
    parse_layers,
    parse_names,
    parse_width,
)
from .shared import takes

if TYPE_CHECKING:
    from ..bench.lines import Line

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Fine-tune after fusion and its rivals, several seeds each, and tabulate."
)

_METHODS = f"unfused, {RIVALS}"

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of the original model.")]
_Lines = Annotated[Path, typer.Argument(metavar="FILE", help="File of JSON lines that a bench wrote.")]
_Methods = Annotated[str, typer.Option(help="Methods, separated by commas.")]
_Rival = Annotated[
    list[str] | None, typer.Option(help="Another checkpoint to fine-tune beside; may be given several times.")
]
_Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.", rich_help_panel=TRAINING)]
_Rates = Annotated[
    str,
    typer.Option(
        help="Learning rates to choose from on a held-out tenth of the training data.", rich_help_panel=TRAINING
    ),
]
_Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training data.", rich_help_panel=TRAINING)]
_Routers = Annotated[
    bool,
    typer.Option("--train-routers", help="Train the routers of a mixture of experts too.", rich_help_panel=TRAINING),
]
_Limit = Annotated[
    int | None, typer.Option(min=1, help="Rows of each split, at most, for a quick look.", rich_help_panel=RUN)
]
_Processes = Annotated[
    int, typer.Option(min=1, help="Processes; they take turns at the GPUs that are visible.", rich_help_panel=RUN)
]
_Out = Annotated[
    Path, typer.Option(help="File of JSON lines. Runs that it holds are not run again.", rich_help_panel=OUTPUT)
]
_Markdown = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class _Runs:
    """The options of a bench."""

    methods: _Methods = _METHODS
    rival: _Rival = None
    seeds: _Seeds = 3
    rates: _Rates = "2e-5,5e-5,1e-4,2e-4"
    epochs: _Epochs = 3
    batch_size: BatchSize = 32
    max_length: MaxLength = 128
    width: Width = str(DEFAULTS.width)
    layers: Layers = str(DEFAULTS.layers)
    limit: _Limit = None
    processes: _Processes = 1
    out: _Out = Path("bench.jsonl")
    as_json: Json = False
    as_markdown: _Markdown = False


@dataclass(frozen=True)
class _WebNLGRuns(_Runs):
    rates: _Rates = "3e-4,1e-3"
    epochs: _Epochs = 5
    max_length: MaxLength = 256


@app.command()
@takes(_Runs)
def glue(
    model: _Model,
    data: Annotated[
        str, typer.Option(help="Folder with TASK/train.parquet and TASK/validation.parquet, or a Hub data set.")
    ] = "nyu-mll/glue",
    tasks: Annotated[str, typer.Option(help="sst2, cola, mrpc, stsb, mnli, qnli, separated by commas.")] = (
        "sst2,cola,mrpc,stsb"
    ),
    targets: Targets = DEFAULTS.targets,
    train_routers: _Routers = False,
    *,
    options: _Runs,
) -> None:
    """GLUE tasks on an encoder, a causal model with a new head, or, in words, an encoder-decoder.

    Stop with Ctrl-C when you like: the same command goes on from there.
    """
    _run("glue", model, data, tasks, options, targets=targets, train_routers=train_routers)


@app.command()
@takes(_WebNLGRuns)
def webnlg(
    model: _Model,
    data: Annotated[
        str, typer.Option(help="Folder with train.parquet, validation.parquet, test.parquet, or a Hub data set.")
    ],
    *,
    options: _WebNLGRuns,
) -> None:
    """WebNLG (triples to text) on a causal language model: BLEU, METEOR and TER, on seen and unseen categories.

    Stop with Ctrl-C when you like: the same command goes on from there.
    """
    _run("webnlg", model, data, "webnlg", options)


@app.command()
def table(
    out: _Lines,
    methods: Annotated[str | None, typer.Option(help="Only these methods, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Only the first seeds, so many.")] = None,
    rates: Annotated[str | None, typer.Option(help="Only these learning rates, separated by commas.")] = None,
    as_json: Json = False,
    as_markdown: _Markdown = False,
) -> None:
    """Tabulate the lines in FILE again, all or some of them."""
    _check_lines(out)
    names = parse_names(methods) if methods is not None else None
    numbers = _numbers(rates) if rates is not None else None

    def wanted(line: Line) -> bool:
        return (
            (names is None or line.method in names)
            and (seeds is None or line.seed < seeds)
            and (numbers is None or line.rate in numbers)
        )

    _show(out, as_json, as_markdown, wanted)


@app.command()
def figures(
    out: _Lines,
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="The method that made the model, such as fusion_calibrated.")
    ],
) -> None:
    """Print what was measured of METHOD, as the JSON lines that `card --results` takes."""
    _check_lines(out)

    from ..bench.figures import figures as measured
    from ..bench.lines import read_lines

    for item in measured(read_lines(out), method):
        typer.echo(json.dumps(dataclasses.asdict(item)))


app.command()(cost)


def _check_lines(out: Path) -> None:
    if not out.is_file():
        raise DataError(f"there is no file {out}; `hf-mlp-fusion bench glue` writes one")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(dict.fromkeys(float(item) for item in parse_names(text)))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) <= 0:
        raise FusionConfigError(f"--rates: {text!r} is no list of learning rates; write 5e-5,1e-4")
    return numbers


def _run(
    bench: str,
    model: str,
    data: str,
    tasks: str,
    options: _Runs,
    *,
    targets: str = DEFAULTS.targets,
    train_routers: bool = False,
) -> None:
    """Runs what is not in the file yet, appends it, and shows the file."""
    recipe = FusionConfig(parse_width(options.width), parse_layers(options.layers), targets)
    grid = _numbers(options.rates)

    from transformers.utils import logging as transformers_logging

    from ..bench.lines import append_line, read_lines
    from ..bench.runner import RIVAL, Job, jobs_for, run_jobs
    from ..bench.train import Settings

    settings = Settings(options.epochs, options.batch_size, options.max_length, train_routers=train_routers)
    command = shlex.join(["hf-mlp-fusion", *sys.argv[1:]])
    template = Job(bench, model, data, "", "", 0, grid, recipe, settings, options.limit, command)
    every = [*parse_names(options.methods), *(RIVAL + name for name in options.rival or ())]
    out = options.out
    check_writable(out)
    done = {line.key for line in read_lines(out)}
    jobs = jobs_for(template, parse_names(tasks), every, options.seeds, done)
    total = len(parse_names(tasks)) * len(every) * options.seeds * len(grid)
    try:
        with transformers_logging.tqdm(total=total, desc="Fine-tuning", unit="run") as progress:
            progress.update(total - sum(len(job.rates) for job in jobs))
            for line in run_jobs(jobs, options.processes):
                append_line(out, line)
                progress.set_description(f"Fine-tuning ({line.task}, {line.method} done)")
                progress.update()
    except KeyboardInterrupt:
        console = Console(stderr=True, highlight=False)
        console.print(f"The finished runs are in {out}; the same command goes on from there.", markup=False)
        raise
    _show(out, options.as_json, options.as_markdown)


def _show(out: Path, as_json: bool, as_markdown: bool, wanted: Callable[[Line], bool] = lambda line: True) -> None:
    from ..bench.lines import read_lines
    from ..bench.table import markdown, print_tables, summarise

    lines = [line for line in read_lines(out) if wanted(line)]
    if not lines:
        raise DataError(f"{out} holds no line that was asked for")
    if as_json:
        cells = [dataclasses.asdict(cell) for table in summarise(lines) for cell in table]
        typer.echo(json.dumps(cells, indent=2))
    elif as_markdown:
        typer.echo(markdown(lines), nl=False)
    else:
        print_tables(lines, Console(highlight=False))
