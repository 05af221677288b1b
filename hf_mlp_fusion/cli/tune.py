"""`hf-mlp-fusion tune`."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import FusionConfigError, check_choice
from ..files import check_output_folder, output_folder
from .options import (
    HOW,
    TEXTS,
    TRAINING,
    Column,
    Dataset,
    Device,
    FusedModel,
    Json,
    NewFolder,
    Overwrite,
    Seed,
    Split,
    Texts,
    check_device,
    check_one_source,
    given_texts,
)

if TYPE_CHECKING:
    from ..training import TuningResult

__all__ = ["tune"]


def tune(
    fused: FusedModel,
    out: NewFolder,
    teacher: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the original.", show_default="what the fused model names"),
    ] = None,
    texts: Texts = None,
    dataset: Dataset = None,
    split: Split = "train",
    column: Column = None,
    sampled: Annotated[
        bool,
        typer.Option(
            "--sampled",
            help="Without texts: on what the original language model writes itself.",
            rich_help_panel=TEXTS,
        ),
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            help="What is to be as in the original: hidden_states or ffn_outputs, layer by layer, or logits, what the "
            "head predicts.",
            rich_help_panel=HOW,
        ),
    ] = "hidden_states",
    train: Annotated[
        str,
        typer.Option(
            help="What trains: ffns (the fused ones), ffns+norms, body (all but embeddings and head), or all.",
            rich_help_panel=HOW,
        ),
    ] = "ffns",
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the texts.", rich_help_panel=TRAINING)] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to take instead.", show_default=False, rich_help_panel=TRAINING)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Learning rate of AdamW.",
            show_default="3e-4, on logits 2e-4 or 6e-4",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows a step.", show_default="16, on logits 8", rich_help_panel=TRAINING),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8, help="Tokens a row, at most.", show_default="128, on logits 512", rich_help_panel=TRAINING
        ),
    ] = None,
    cache_logits: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For an original that does not fit beside the fused model: keep that many of its likeliest tokens "
            "(64, say) in files first.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Tune the fused FFNs of MODEL on the original, layer by layer or on what it predicts, and save the result in OUT.

    A tenth of the texts is held out, to measure on (more where they are few). Labels are not needed. What is stopped
    goes on from its last minute when the same command is given again: until it is done, that lies in OUT.tuning.
    """
    check_device(device)
    check_one_source(texts, dataset, sampled)
    for place in filter(None, (teacher, fused)):
        check_output_folder(out, overwrite=overwrite, source=place)

    from ..data import load_tokenizer, save_carrying
    from ..hub import add_stub, check_folder, check_side_files
    from ..modeling.loading import load_fused_model, load_stock_model
    from ..training import tune_model
    from ..training.targets import TARGETS
    from ..training.trained import TRAINED

    check_choice("target", target, TARGETS)
    check_choice("train", train, TRAINED)
    lines = given_texts(texts, dataset, sampled, column, split)
    tokenizer = load_tokenizer(fused)
    check_side_files(fused)
    model: Any = load_fused_model(fused, device=device)
    teacher = teacher or model.config.mlp_fusion["source"].get("name_or_path")
    if not teacher:
        raise FusionConfigError(f"{fused} does not name the model that it was fused from: give --teacher")
    try:
        original = load_stock_model(teacher, dtype="float32", device=device if cache_logits is None else "cpu")
    except FusionConfigError as error:
        raise FusionConfigError(f"the original is not to be had; name it with --teacher: {error}") from error
    stored = model.dtype
    work = out.expanduser().absolute().with_name(f"{out.name}.tuning")
    try:
        result = tune_model(
            model.float(),  # half precision loses small steps
            original,
            lines,
            tokenizer,
            target=target,
            train=train,
            epochs=epochs,
            steps=steps,
            learning_rate=lr,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            cache_logits=cache_logits,
            work=work,
        )
    except KeyboardInterrupt:
        if work.exists():
            Console(stderr=True).print("the same command goes on from here", highlight=False)
        raise
    with output_folder(out, overwrite=overwrite) as folder:
        save_carrying(model.to(stored), fused, folder)
        add_stub(folder)
        check_folder(folder)
    shutil.rmtree(work)
    if as_json:
        typer.echo(model.fusion_report.to_json(), nl=False)
    else:
        _print(result, out, Console(highlight=False))


def _print(result: TuningResult, out: Path, console: Console) -> None:
    table = Table(title=f"Output error on {result.rows} held-out rows")
    table.add_column("FFN", overflow="fold")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, before in result.before.ffns.items():
        table.add_row(name, f"{before:.3f}", f"{result.after.ffns[name]:.3f}")
    for name, error in (("mean", "mean"), ("last hidden state", "hidden_state")):
        table.add_row(name, f"{getattr(result.before, error):.3f}", f"{getattr(result.after, error):.3f}")
    console.print(table)
    if result.divergence:
        console.print("Divergence from the original: {:.4g} → {:.4g} nats".format(*result.divergence))
    if result.losses:
        original, before, after = (math.exp(min(loss, 700.0)) for loss in result.losses)
        console.print(
            f"Perplexity: {before:,.2f} → {after:,.2f}, {before / original:.3g} → {after / original:.3g} times the "
            f"original's {original:,.2f}"
        )
    console.print(f"Saved in {out}.", markup=False)
