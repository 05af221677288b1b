"""`hf-mlp-fusion bench cost`: what a step of fine-tuning costs."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..recipe import FusionConfig
from .options import (
    DEFAULTS,
    RUN,
    BatchSize,
    Device,
    Json,
    Layers,
    MaxLength,
    Targets,
    Width,
    check_device,
    parse_layers,
    parse_width,
)

__all__ = ["cost"]


def cost(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id with a config.json; the weights are random.")
    ],
    width: Width = str(DEFAULTS.width),
    layers: Layers = str(DEFAULTS.layers),
    targets: Targets = DEFAULTS.targets,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 128,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run under autocast to bfloat16.", rich_help_panel=RUN)] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Run under torch.compile.", rich_help_panel=RUN)] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a step of fine-tuning: time, memory and optimiser state, fused against unfused and folded."""
    check_device(device)
    import torch

    from ..bench.cost import random_model, step_costs

    recipe = FusionConfig(parse_width(width), parse_layers(layers), targets)
    costs = step_costs(
        random_model(model, device),
        recipe,
        batch_size=batch_size,
        length=max_length,
        autocast=torch.bfloat16 if bf16 else None,
        compiled=compiled,
    )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(item) for item in costs], indent=2))
        return
    grid = Table("", "step, ms", "of unfused", "peak memory, MB", "optimiser, MB", "parameters", box=SIMPLE_HEAD)
    for item in costs:
        peak = "–" if item.peak_memory is None else f"{item.peak_memory / 1e6:,.0f}"
        grid.add_row(
            item.name,
            f"{1e3 * item.seconds:.2f} ± {1e3 * item.spread / 2:.2f}",
            f"{item.of_unfused:.3f}",
            peak,
            f"{item.optimizer_bytes / 1e6:,.0f}",
            f"{item.parameters / 1e6:.1f} M",
        )
    Console(highlight=False).print(grid)
