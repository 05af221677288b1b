"""What a fusion will take, told before it starts: memory, which is checked, and work, which the progress bar needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from transformers import PreTrainedModel

from ..data import Batch, check_room, longest_input, model_bytes, row_bytes, spare_bytes
from ..measure import kernel_bytes, kernel_work
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from .calibration import moments_work
from .driver import reduction_work
from .layer_fuser import moment_bytes
from .loss_metric import metric_bytes, metric_rows, metric_work
from .sources import MomentSource

__all__ = ["check_memory", "fusion_work", "reduction_bytes"]


def check_memory(
    model: PreTrainedModel,
    todo: Sequence[tuple[FFN, int]],
    config: FusionConfig,
    batches: Sequence[Batch],
    samples: Sequence[Batch],
    *,
    source: MomentSource | None,
    inplace: bool,
) -> None:
    """Checks that there is the memory that a calibrated fusion takes at least, its batches cut as far as they may be.

    Args:
        model: The model.
        todo: All FFNs to fuse, each with the units to keep.
        config: The recipe, resolved.
        batches: Calibration data, where the recipe refits.
        samples: Rows on which kernels are matched, where they are.
        source: What moments come from: these batches, or files instead.
        inplace: Whether the model's tensors are taken over.

    Raises:
        MemoryLimitError: There is not.
    """
    stages = {}
    if source is not None:
        groups = itertools.groupby(todo, key=lambda item: source.pass_of(item[0]))
        moments = max(
            sum(moment_bytes(ffn, width if config.selection == "clusters" else ffn.width) for ffn, width in together)
            for _, together in groups
        )
        selection = max(reduction_bytes(ffn, width, config, calibrated=True) for ffn, width in todo)
    if batches:
        row = row_bytes(model, max(map(longest_input, batches)))
        stages["shorter calibration rows need less"] = 2 * moments + max(selection, row)
        if config.metric == "loss":
            longest = row_bytes(model, max(map(longest_input, metric_rows(batches))), gradients=True)
            stages["metric='output' needs less"] = metric_bytes(ffn for ffn, _ in todo) + longest
    elif source is not None:
        stages["fuse --stream needs less"] = moments + selection
    if samples:
        widest = max(ffn.width + max(ffn.hidden_size, ffn.output_size) for ffn, _ in todo)
        stages["ntk='none' needs less"] = kernel_bytes(model, samples, widest)
    if not stages:
        return
    mend, stage = max(stages.items(), key=lambda item: item[1])
    copy = 0 if inplace else model_bytes(model)
    more = "" if inplace else ", inplace=True a copy of the model less"
    check_room(copy + stage, model.device, "this fusion", f"{mend}{more}")


def reduction_bytes(ffn: FFN, width: int, config: FusionConfig, *, calibrated: bool) -> int:
    """Memory that choosing the units of an FFN takes, beside its weights and its moments.

    Args:
        ffn: The FFN; its weights need not be in memory.
        width: Units to keep.
        config: The recipe, resolved.
        calibrated: Whether there are moments.
    """
    if calibrated and config.selection != "clusters":  # what is eliminated from, and the refitted output weights
        return 16 * ffn.width**2 + 8 * ffn.width * ffn.output_size
    size = ffn.read().unit_size
    vectors, centroids = 4 * ffn.width * size, 4 * width * size
    if config.clustering == "kmeans":
        return vectors + 3 * centroids
    distances = 4 * ffn.width**2  # each once in float64
    return vectors + max(distances, 2 * centroids)


def fusion_work(
    model: PreTrainedModel,
    todo: Sequence[tuple[FFN, int]],
    config: FusionConfig,
    batches: Sequence[Batch],
    samples: Sequence[Batch],
) -> float:
    """About how many operations a fusion takes.

    Args:
        model: The model.
        todo: All FFNs to fuse, each with the units to keep.
        config: The recipe, resolved.
        batches: Calibration data, where the recipe refits.
        samples: Rows on which kernels are matched, where they are.
    """
    work = reduction_work(todo) * (1 if config.auto_share is None else 2) + 2 * kernel_work(model, samples)
    if batches:
        work += metric_work(model, batches) if config.metric == "loss" else 0.0
        held = sum(moment_bytes(ffn, ffn.width) for ffn, _ in todo)
        passes = math.ceil(held / max(1, spare_bytes(model.device)))
        work += moments_work(model, [ffn for ffn, _ in todo], batches) * (passes + 1) / 2
    return work
