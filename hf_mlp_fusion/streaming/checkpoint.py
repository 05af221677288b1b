"""`fuse_checkpoint`: a model fused from its files to files, never in memory as a whole."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from .. import __version__
from ..data import LANGUAGE_OBJECTIVES, Processes, objective_of, plain_context, progress_over, save_carrying
from ..errors import FusionWarning
from ..files import check_disk, check_output_folder, check_room, output_folder
from ..fusion import (
    LayerFuser,
    ReducedFFN,
    Size,
    Statistics,
    StatisticsSource,
    check_reducible,
    check_smaller,
    cost_of_no_data,
    few_tokens,
    plan_fusion,
    receipt,
    recipe_for,
    reduction_work,
)
from ..hub import check_folder, check_side_files, stored_tensors
from ..modeling.ffn import FFN
from ..modeling.find import by_entry
from ..modeling.forms import ReducedWeights
from ..modeling.loading import load_stock_model
from ..recipe import FFNReport, FusionConfig, FusionReport, FusionSection, check_recipe
from .passes import copy_tensors, copying_work, group_bytes, parameters_of, reduce_stored
from .shards import Shards, saved_tensors
from .stored import StoredModel
from .twin import fused_twin, origins_of, scales_of, tie_as_stored
from .work import fingerprint, open_work, work_place

__all__ = ["fuse_checkpoint"]


@plain_context()
def fuse_checkpoint(
    source: str,
    out: str | Path,
    config: FusionConfig,
    *,
    statistics: str | Path | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
) -> FusionReport:
    """Fuses a checkpoint FFN by FFN, and writes what `fuse_model(...).save_pretrained(out)` would.

    In memory there is one FFN (or stack of experts) and what becomes of it, never the model. What is stopped, however,
    goes on where it was when it is called again: until it is done, that lies in `OUT.streaming`. The processes of
    `accelerate launch` share the FFNs, and make together, byte for byte, what one makes.

    Args:
        source: Folder or Hub id of a stock model.
        out: The folder to write. It comes into being whole or not at all.
        config: What to fuse and how.
        statistics: Folder of the model's statistics, which `hf-mlp-fusion calibrate` makes; without, fusion knows no
            data.
        dtype: `"auto"` for the one that the weights are stored in, or the name of another.
        device: Where FFNs are reduced.
        max_shard_size: Size of the files that are written, at most, as for `save_pretrained`.
        overwrite: Replace a model folder that is there.

    Returns:
        The receipt.

    Raises:
        FusionConfigError: The recipe cannot be carried out or keeps every unit, a weight is not finite, `out` cannot
            be written, or another fusion was stopped on the way there.
        UnsupportedModelError: The family is not supported, the model is fused or quantized, has no safetensors, or
            cannot be read a part at a time.
        BrokenCheckpointError: Its files or the statistics are broken, lack weights, or are of another model.
        DiskLimitError: The disk has less room than the result takes.
        MemoryLimitError: The machine has less memory than the largest FFN takes.

    Warns:
        FusionWarning: As `fuse_model`.

    Example:
        >>> from hf_mlp_fusion import FusionConfig
        >>> from hf_mlp_fusion.streaming import fuse_checkpoint
        >>> fuse_checkpoint("model", "out", FusionConfig(width=0.25))  # doctest: +SKIP
    """
    out, started, processes = Path(out), time.perf_counter(), Processes(device)
    check_recipe(config)
    check_output_folder(out, overwrite=overwrite, source=source)
    stock = load_stock_model(source, dtype=dtype, device="meta")
    known = None if statistics is None else Statistics(statistics)
    if known is not None:
        config = recipe_for(config, known)
    config = config.resolved(calibrated=known is not None, language=objective_of(stock) in LANGUAGE_OBJECTIVES)
    headers = stored_tensors(source, {}, getattr(stock.config, "transformers_weights", None))
    stored = StoredModel(stock, headers)
    tie_as_stored(stock, stored)
    check_reducible(stock, empty=True)
    check_side_files(source)
    check_smaller(stock, config)
    plan = plan_fusion(stock, config)
    ffns = [ffn for ffn, _ in plan.widths]
    if known is not None:
        known.check(stock, ffns)
    elif costly := cost_of_no_data(stock, ffns):
        plan.warnings.append(costly)
    for message in plan.warnings:
        warnings.warn(message, FusionWarning, stacklevel=3)

    moments = None if known is None else StatisticsSource(known, processes.device)
    widths, each = {ffn.name: width for ffn, width in plan.widths}, config
    if config.auto_share is not None:  # it is shared out, and that is done
        widths, each = _search_widths(stock, plan.widths, config, moments, processes), replace(config, width=1.0)

    def reduce_group(group: Sequence[tuple[FFN, int]]) -> Mapping[str, ReducedFFN[ReducedWeights]]:
        return LayerFuser(stock, group, each, moments)(group)  # one for each: it looks ahead as far as it may

    groups = [[(ffn, widths[ffn.name]) for ffn in group] for group in by_entry(ffns)]
    needed = max(group_bytes(stored, group, config, calibrated=known is not None) for group in groups)
    mend = "take a machine with more" + (", or leave the statistics out" if known is not None else "")
    check_room(needed, processes.device, "the largest FFN", mend)
    fused: Any = fused_twin(stock, [item for group in groups for item in group], config)
    saved = saved_tensors(fused)
    origins = origins_of(fused, saved, stored, [name for group in groups for name in parameters_of(group)])
    before = Size.of(stock)
    with open_work(work_place(out), processes) as work:
        work.begin(
            {
                "source": source,
                "files": fingerprint(headers.values()),
                "recipe": config.to_dict(),
                "statistics": None if known is None else known.header.sha256,
                "dtype": str(stock.dtype),
                "device": device,
                "max_shard_size": str(max_shard_size),
                "versions": [__version__, transformers.__version__, torch.__version__],
            }
        )
        shards = Shards(work.folder, saved, max_shard_size)
        if processes.of_first(not shards.are_there):
            work.forget()
        check_disk(shards.missing_bytes, out, f"fusing {source}")
        with shards, progress_over(reduction_work(plan.widths) + copying_work(shards), "Fusing"):
            for name, tensor in scales_of(fused).items():
                shards.write(name, [tensor])
            reduce_stored(stock, stored, groups, reduce_group, shards, work, str(processes.device))
            copy_tensors(stored, origins, shards, work)
            work.read()
        reports = [FFNReport(**item) for group in groups for item in work.done[group[0][0].entry]]
        section = FusionSection.from_dict(fused.config.mlp_fusion)
        report = receipt(fused, section, plan, reports, before, time.perf_counter() - started)
        for message in [] if known is None else few_tokens(report, ffns):
            warnings.warn(message, FusionWarning, stacklevel=3)
            report.warnings.append(message)
        fused.fusion_report = report
        if not processes.first:
            return report
        with output_folder(out, overwrite=overwrite) as folder:
            save_carrying(fused, source, folder, state_dict={})
            (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # an empty one
            for file in shards.names:
                _link(work.folder / file, folder / file)
            shards.write_index(folder, fused.num_parameters())
            check_folder(folder)
    return report


def _search_widths(
    stock: PreTrainedModel,
    todo: Sequence[tuple[FFN, int]],
    config: FusionConfig,
    moments: StatisticsSource | None,
    processes: Processes,
) -> dict[str, int]:
    """What the share of a recipe becomes for each FFN. Of several processes each eliminates the units of some."""
    mine: list[list[tuple[FFN, int]]] = []
    if processes.count > 1:
        mine = processes.share([[(ffn, ffn.width) for ffn in group] for group in by_entry(ffn for ffn, _ in todo)])
    with progress_over(sum(map(reduction_work, [*mine, todo])), "Searching widths"):
        for group in mine:
            LayerFuser(stock, group, config, moments)  # how its units went is kept with the statistics, for all
        processes.wait()
        return LayerFuser(stock, todo, config, moments).widths


def _link(path: Path, place: Path) -> None:
    """Gives a file a second name; on disks that know no such thing, a copy."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)
