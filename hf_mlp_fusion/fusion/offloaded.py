"""`calibrate_checkpoint`: the statistics of a model that does not fit into memory, layer by layer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data import Batch, Processes, plain_context
from ..errors import UnsupportedModelError, check_choice
from ..modeling.find import find_ffns
from ..modeling.loading import stored_bytes
from ..modeling.offloading import chained_layers, load_offloaded_model
from ..recipe import METRICS
from .calibrate import begin, write_moments
from .calibration import calibration_batches, hold_out
from .layer_by_layer import LayerByLayer
from .layer_chain import NotAChainError
from .statistics import Statistics
from .work import open_work

__all__ = ["calibrate_checkpoint"]

logger = logging.getLogger(__name__)


@plain_context()
def calibrate_checkpoint(
    name_or_path: str,
    folder: str | Path,
    calibration: Any,
    *,
    tokenizer: Any = None,
    metric: str = "auto",
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
) -> Statistics:
    """As `calibrate_model`, for a model of which no more than one layer is ever in memory, beside its embeddings.

    What the layers return is kept on disk, so that each is loaded once, and once more for the metric of the loss.
    Where layers are no chain (encoder-decoders, layers that are shared), whole forwards load them over and over.

    Args:
        name_or_path: Folder or Hub id of a stock model.
        folder: As for `calibrate_model`. Beside it, `FOLDER.calibrating` holds what layers return, until all is done.
        calibration: As for `fuse_model`.
        tokenizer: As for `fuse_model`.
        metric: As for `calibrate_model`.
        seed: As for `calibrate_model`.
        dtype: Name of a torch dtype, or `"auto"` for the one that the weights are stored in.
        device: Where the layer that is loaded runs.

    Returns:
        The statistics, those of `calibrate_model` on the same device up to rounding.

    Raises:
        DiskLimitError: There is not the disk space for what layers return and for the statistics.
        FusionError: As `calibrate_model`.
    """
    check_choice("metric", metric, METRICS)
    folder = Path(folder).expanduser().absolute()
    processes = Processes(device)
    with open_work(folder, processes) as work:

        def load() -> PreTrainedModel:
            weights = work / f"weights.{processes.number}"
            return load_offloaded_model(name_or_path, weights, dtype=dtype, device=str(processes.device))

        model = load()
        batches = calibration_batches(model, calibration, tokenizer)
        if processes.first:
            begin(model, folder, batches, metric, seed)
        processes.wait()
        statistics = begin(model, folder, batches, metric, seed)
        if statistics.header.whole:
            return statistics
        layers = chained_layers(model)
        try:
            if not layers:
                raise NotAChainError("its layers are not one list that runs in order")
            LayerByLayer(model, layers, batches, statistics, work, stored_bytes(name_or_path), processes).run()
        except NotAChainError as error:
            logger.warning("%s: %s, so that whole forwards load all layers, each time", name_or_path, error)
            if statistics.header.metric == "loss":
                raise UnsupportedModelError(
                    f"{name_or_path} cannot be calibrated layer by layer ({error}), which metric='loss' needs where a "
                    "model does not fit into memory: write metric='output'"
                ) from None
            if processes.count > 1:
                raise UnsupportedModelError(
                    f"{name_or_path} cannot be calibrated layer by layer ({error}): calibrate it with one process"
                ) from None
            del model
            _by_whole_forwards(load(), batches, statistics)
        if processes.first:
            statistics.done([], whole=True)
    return statistics


def _by_whole_forwards(model: PreTrainedModel, batches: Sequence[Batch], statistics: Statistics) -> None:
    """Takes the moments of one layer after another, each by passes through all layers up to it."""
    rows, held_out = hold_out(batches)
    ffns = [ffn for ffn in find_ffns(model) if ffn.name not in statistics.header.ffns]
    if any(ffn.spec.stacked for ffn in ffns):
        raise UnsupportedModelError("its experts are 3-D parameters, which whole forwards do not show: load it whole")
    for _, layer in itertools.groupby(ffns, key=lambda ffn: (ffn.stack, ffn.layer)):
        write_moments(model, list(layer), rows, held_out, statistics)
