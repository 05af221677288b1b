"""The two passes from a checkpoint to the files of the fused model: FFNs are reduced, all else is copied."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import Progress
from ..fusion import LayerReducer, check_finite, ffn_report, moment_bytes, reduction_bytes, reduction_work
from ..modeling.ffn import FFN
from ..modeling.forms import FORMS
from ..recipe import FFNReport, FusionConfig
from .shards import Shards
from .stored import StoredModel
from .twin import FORM
from .work import StreamWork

__all__ = ["copy_tensors", "copying_work", "group_bytes", "parameters_of", "reduce_stored"]

_COPYING = 100.0  # operations of a forward that take as long as a byte that is copied


def parameters_of(group: Sequence[tuple[FFN, int]]) -> list[str]:
    """Names of the parameters of an FFN, or of a stack of experts.

    Args:
        group: The FFN, or the experts, each with the units to keep.
    """
    return [*dict.fromkeys(name for ffn, _ in group for name in ffn.parameter_names())]


def group_bytes(
    stored: StoredModel, group: Sequence[tuple[FFN, int]], config: FusionConfig, *, calibrated: bool
) -> int:
    """Memory that reducing an FFN, or a stack of experts, takes: weights, moments of one, and what is made of them.

    Args:
        stored: The checkpoint.
        group: The FFN, or the experts, each with the units to keep.
        config: The recipe, resolved.
        calibrated: Whether there are statistics.
    """
    weights = sum(stored.wanted[name].nbytes for name in parameters_of(group))
    moments = max(moment_bytes(ffn, ffn.width) for ffn, _ in group) if calibrated else 0
    return weights + moments + max(reduction_bytes(ffn, width, config, calibrated=calibrated) for ffn, width in group)


def copying_work(shards: Shards) -> float:
    """About how many operations copying takes as long as."""
    return _COPYING * sum(map(shards.bytes_of, shards.names))


def reduce_stored(
    stock: PreTrainedModel,
    stored: StoredModel,
    groups: Sequence[Sequence[tuple[FFN, int]]],
    reduce_group: LayerReducer,
    shards: Shards,
    work: StreamWork,
    device: str,
) -> None:
    """Reduces the FFNs of a checkpoint one after another, the experts of a stack together, but for what is done.

    Several processes share them: each FFN is reduced by one as if it were alone, so that all are what one makes.

    Args:
        stock: The model, on the meta device.
        stored: Its checkpoint.
        groups: Its FFNs and stacks, each FFN with the units to keep.
        reduce_group: What reduces them.
        shards: Where they are written.
        work: Where it is noted.
        device: Where they are reduced.
    """
    every = [item for group in groups for item in group]
    mine = work.processes.share([group for group in groups if group[0][0].entry not in work.done])
    with Progress(len(every), "fusion", work=reduction_work(every)) as progress:
        progress.update(len(every) - sum(map(len, mine)))
        for group in mine:
            reports = _reduce(stock, stored, group, reduce_group, shards, device)
            shards.sync()
            work.note(group[0][0].entry, [asdict(report) for report in reports])
            progress.update(len(group))


def _reduce(
    stock: PreTrainedModel,
    stored: StoredModel,
    group: Sequence[tuple[FFN, int]],
    reduce_group: LayerReducer,
    shards: Shards,
    device: str,
) -> list[FFNReport]:
    started, form = time.perf_counter(), FORMS[FORM]
    with _filled(stock, stored.tensors(parameters_of(group)), device):
        for ffn, _ in group:
            check_finite(ffn)
        reduced = reduce_group(group)
        seconds = (time.perf_counter() - started) / len(group)
        reports = [ffn_report(ffn, reduced[ffn.name], FORM, seconds) for ffn, _ in group]
        for ffn, _ in group:
            for path, tensor in form.tensors(ffn, reduced[ffn.name].weights).items():
                number = ffn.expert if ffn.spec.stacked else None
                shards.write(f"{ffn.full_name}.{path}", [tensor], number=number or 0)
    return reports


def copy_tensors(stored: StoredModel, origins: Mapping[str, str], shards: Shards, work: StreamWork) -> None:
    """Copies tensors of a checkpoint, but for what is done.

    Args:
        stored: The checkpoint.
        origins: Their names in the stock model by those in the fused one.
        shards: Where they are written.
        work: Where it is noted.
    """
    with Progress(len(shards.names), "copying", work=copying_work(shards)) as progress:
        mine = work.processes.share([file for file in shards.names if file not in work.done])
        progress.update(len(shards.names) - len(mine))
        for file in mine:
            for name in shards.names[file]:
                if name in origins:
                    shards.write(name, stored.pieces(origins[name]))
            shards.sync()
            work.note(file)
            progress.update(1)


@contextlib.contextmanager
def _filled(stock: PreTrainedModel, tensors: Mapping[str, Tensor], device: str) -> Iterator[None]:
    """Gives a model on the meta device some of its weights for a while."""
    empty = {name: stock.get_parameter(name) for name in tensors}
    try:
        for name, tensor in tensors.items():
            _put(stock, name, nn.Parameter(tensor.to(device), requires_grad=False))
        yield
    finally:
        for name, parameter in empty.items():
            _put(stock, name, parameter)


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, parameter)
