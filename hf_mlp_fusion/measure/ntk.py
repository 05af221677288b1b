"""The empirical neural tangent kernel over the weights of FFNs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..data import Batch, evaluating, on_device, row_count
from ..errors import FusionConfigError, UnsupportedModelError
from ..modeling.find import find_ffns
from ..modeling.parts import Rows
from .gradients import Slice, sample_gradients
from .pairs import parameter_blocks, reduced_ffns

__all__ = ["KERNELS", "NTK", "ntk"]

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"adam": torch.sign, "sgd": lambda gradients: gradients}
"""Kernels K = G·u(G)ᵀ by name, u being the update that an optimiser makes of a gradient."""

_COLUMNS = 2**16  # gradients of each sample multiplied at once: bounds the copy that u(G) needs


@dataclass(frozen=True)
class NTK:
    """A kernel over N samples, in blocks that add up.

    Args:
        kernel: `"adam"` or `"sgd"`.
        blocks: The part of each FFN (or of each parameter named), `[N, N]`.
    """

    kernel: str
    blocks: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The kernel over all blocks, `[N, N]`."""
        return torch.stack(list(self.blocks.values())).sum(dim=0)


def ntk(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    kernel: str = "adam",
    parameters: Mapping[str, Sequence[str | Rows]] | Sequence[str] | None = None,
    *,
    gradient_bytes: int = 2**31,
) -> NTK:
    """Computes the NTK of a model's scalar output over its FFN weights.

    G has one row a sample: the gradient of the scalar output (`hf_mlp_fusion.measure.scalars`) by the stored weights.
    The Adam kernel is G·sign(G)ᵀ (arXiv 2307.08941, section 4.2), since an Adam step has the learning rate's size
    whatever the gradient's; the SGD kernel is G·Gᵀ.

    Args:
        model: A stock or fused model.
        batches: Batches of tokens; their rows are the samples.
        kernel: `"adam"` or `"sgd"`.
        parameters: Parameter names, in blocks (of names, or of rows of parameters) or each a block of its own; if not
            given, the weights of the fused FFNs, or in a stock model of all FFNs.
        gradient_bytes: Bytes of gradients held at once. What does not fit is computed in several passes, down to
            ranges of a single matrix, so memory is bounded whatever the number of samples.

    Returns:
        The kernel in float64 on the CPU.

    Raises:
        FusionConfigError: No such kernel or parameter.
        UnsupportedModelError: The model has no FFN.
    """
    if kernel not in KERNELS:
        raise FusionConfigError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, not {kernel!r}")
    samples = [on_device(batch, model) for batch in batches]
    count = sum(map(row_count, samples))
    blocks = _blocks(model, parameters)
    parts = {name: torch.zeros(count, count, dtype=torch.float64) for name in blocks}
    with evaluating(model):
        passes = list(_passes(model, blocks, gradient_bytes, count))
        progress = transformers_logging.tqdm(total=len(passes) * count, desc="NTK", unit="gradient")
        for slices in passes:
            _add(parts, sample_gradients(model, samples, slices, progress.update), slices, KERNELS[kernel])
        progress.close()
    return NTK(kernel, parts)


def _add(parts: dict[str, Tensor], rows: Tensor, slices: Sequence[Slice], update: Callable[[Tensor], Tensor]) -> None:
    """Adds what the gradients of some slices contribute to the kernel; nothing holds them when it returns."""
    column = 0
    for item in slices:
        part = rows[:, column : column + item.stop - item.start]
        for columns in part.split(_COLUMNS, dim=1):
            parts[item.block] += (columns @ update(columns).T).double().cpu()
        column += item.stop - item.start


def _blocks(
    model: PreTrainedModel, parameters: Mapping[str, Sequence[str | Rows]] | Sequence[str] | None
) -> dict[str, list[Slice]]:
    """What each block holds, as ranges of flattened parameters."""
    if parameters is None:
        names = reduced_ffns(model) or [ffn.name for ffn in find_ffns(model)]
        if not names:
            raise UnsupportedModelError(f"{type(model).__name__} has no FFN that its family's specs describe")
        parameters = parameter_blocks(model, names)
    elif not isinstance(parameters, Mapping):
        parameters = {name: [name] for name in parameters}
    known = dict(model.named_parameters())
    blocks: dict[str, list[Slice]] = {}
    for block, items in parameters.items():
        blocks[block] = []
        for item in items:
            name = item if isinstance(item, str) else item.parameter
            if name not in known:
                raise FusionConfigError(f"parameters: the model has no parameter {name!r}")
            size, rows = known[name].numel(), len(known[name])
            start, stop = (0, rows) if isinstance(item, str) else (item.start, item.stop)
            blocks[block].append(Slice(block, name, start * size // rows, stop * size // rows))
    return blocks


def _passes(
    model: PreTrainedModel, blocks: dict[str, list[Slice]], gradient_bytes: int, samples: int
) -> Iterator[list[Slice]]:
    """Packs the parameters, cut where needed, into passes whose gradients fit."""
    room = max(1, gradient_bytes // (samples * torch.finfo(model.dtype).bits // 8))
    taken: list[Slice] = []
    left = room
    for item in (item for items in blocks.values() for item in items):
        start = item.start
        while start < item.stop:
            if not left:
                yield taken
                taken, left = [], room
            stop = min(item.stop, start + left)
            taken.append(Slice(item.block, item.parameter, start, stop))
            start, left = stop, left - (stop - start)
    yield taken
