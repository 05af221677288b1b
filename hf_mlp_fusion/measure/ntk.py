"""The empirical neural tangent kernel over the weights of FFNs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..data import (
    Batch,
    Progress,
    as_batches,
    check_room,
    evaluating,
    forward_work,
    longest_input,
    on_device,
    plain_context,
    row_bytes,
    single_rows,
    spare_bytes,
    token_count,
)
from ..errors import FusionConfigError, UnsupportedModelError, check_choice
from ..modeling.find import find_ffns
from ..modeling.rows import Rows
from .gradients import LinearMap, Tokens, linear_maps, parameter_gradients, token_gradients
from .pairs import parameter_blocks, reduced_ffns

__all__ = ["KERNELS", "NTK", "Item", "kernel_bytes", "kernel_work", "ntk"]

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"adam": torch.sign, "sgd": lambda gradients: gradients}
"""Kernels K = G·u(G)ᵀ by name, u being the update that an optimiser makes of a gradient."""

Item = str | Rows
"""A parameter by its name, or some output units of one."""

_COLUMN_BYTES = 2**26  # of G held at once; u(G) is as large again


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


@plain_context()
def ntk(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    kernel: str = "adam",
    parameters: Mapping[str, Sequence[Item]] | Sequence[str] | None = None,
    *,
    gradient_bytes: int | None = None,
) -> NTK:
    """Computes the NTK of a model's scalar output over its FFN weights.

    G has one row a sample: the gradient of the scalar output (`hf_mlp_fusion.measure.scalars`) by the stored weights.
    The Adam kernel is G·sign(G)ᵀ (arXiv 2307.08941, section 4.2), since an Adam step has the learning rate's size
    whatever the gradient's; the SGD kernel is G·Gᵀ.

    Samples run one at a time, so memory does not depend on the batches that they come in, and one forward and backward
    of each gives all kernels, where what they are made of fits.

    Args:
        model: A stock or fused model.
        batches: Batches of tokens; their rows are the samples.
        kernel: `"adam"` or `"sgd"`.
        parameters: Parameter names (or `Rows` of one), in blocks or each a block of its own; if not given, the weights
            of the fused FFNs, or in a stock model of all FFNs.
        gradient_bytes: Bytes of what gradients are made of to hold at once; if not given, what the machine can spare.
            What does not fit is computed in several passes over the samples.

    Returns:
        The kernel in float64 on the CPU.

    Raises:
        FusionConfigError: No such kernel or parameter.
        UnsupportedModelError: The model has no FFN.
        MemoryLimitError: What one linear map saw of all samples does not fit into the memory there is.
    """
    check_choice("kernel", kernel, KERNELS)
    rows = [on_device(row, model) for row in single_rows(as_batches(model, batches))]
    blocks = _blocks(model, parameters)
    parts = {name: torch.zeros(len(rows), len(rows), dtype=torch.float64) for name in blocks}
    maps = linear_maps(model)
    by_module: dict[nn.Module, list[tuple[str, Item]]] = {}
    others: list[tuple[str, Item]] = []
    for block, items in blocks.items():
        for item in items:
            owner = maps.get(_parameter_of(item))
            (others if owner is None else by_module.setdefault(owner.module, [])).append((block, item))
    widest = max((sum(_weight_of(module).shape) for module in by_module), default=0)
    check_room(kernel_bytes(model, rows, widest), model.device, "a kernel", "fewer or shorter rows need less")
    room = spare_bytes(model.device) if gradient_bytes is None else gradient_bytes
    with evaluating(model):
        passes = list(_module_passes(by_module, rows, room))
        slices = list(_slices(model, others, max(1, room // max(1, len(rows)))))
        number = len(passes) + len(slices)
        progress = Progress(
            number * len(rows),
            "kernels",
            work=number * kernel_work(model, rows),
            shorter="fewer or shorter rows shorten it, or a recipe with ntk='none'",
        )
        for modules in passes:
            kept = token_gradients(model, rows, modules, progress.update)
            for module in modules:
                tokens = kept.pop(module)
                for block, item in by_module[module]:
                    parts[block] += _linear_kernel(tokens, maps[_parameter_of(item)], item, KERNELS[kernel])
        for chosen in slices:
            _add(parts, model, rows, chosen, KERNELS[kernel], progress.update)
        progress.close()
    return NTK(kernel, parts)


def kernel_bytes(model: PreTrainedModel, rows: Sequence[Batch], widest: int) -> int:
    """About how much memory a kernel takes at least, a linear map a pass.

    Args:
        model: The model.
        rows: The samples.
        widest: Inputs and outputs of the widest linear map that it is over.
    """
    if not rows:
        return 0
    kept = token_count(rows) * widest * model.dtype.itemsize
    return kept + row_bytes(model, max(map(longest_input, rows)), gradients=True)


def kernel_work(model: PreTrainedModel, rows: Iterable[Batch]) -> float:
    """About how many operations one pass over the samples takes."""
    return 2 * forward_work(model, rows)


def _blocks(
    model: PreTrainedModel, parameters: Mapping[str, Sequence[Item]] | Sequence[str] | None
) -> Mapping[str, Sequence[Item]]:
    if parameters is None:
        names = reduced_ffns(model) or [ffn.name for ffn in find_ffns(model)]
        if not names:
            raise UnsupportedModelError(f"{type(model).__name__} has no FFN that its family's specs describe")
        return parameter_blocks(model, names)
    blocks = parameters if isinstance(parameters, Mapping) else {name: [name] for name in parameters}
    known = {name for name, _ in model.named_parameters()}
    for name in (_parameter_of(item) for items in blocks.values() for item in items):
        if name not in known:
            raise FusionConfigError(f"parameters: the model has no parameter {name!r}")
    return blocks


def _parameter_of(item: Item) -> str:
    return item.parameter if isinstance(item, Rows) else item


# Linear maps: kernels made of what each map saw


def _module_passes(modules: Iterable[nn.Module], rows: Sequence[Batch], room: int) -> Iterator[list[nn.Module]]:
    """Packs linear maps into passes, so that what each keeps of all rows fits."""
    tokens = token_count(rows)
    taken: list[nn.Module] = []
    left = room
    for module in modules:
        weight = _weight_of(module)
        size = tokens * sum(weight.shape) * weight.element_size()  # its inputs, and the gradients of its outputs
        if taken and size > left:
            yield taken
            taken, left = [], room
        taken.append(module)
        left -= size
    if taken:
        yield taken


def _weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _linear_kernel(
    tokens: Sequence[Tokens], parameter: LinearMap, item: Item, update: Callable[[Tensor], Tensor]
) -> Tensor:
    """The kernel of the samples over the weights or biases of a linear map."""
    weight = _weight_of(parameter.module)
    inputs, outputs = weight.shape if isinstance(parameter.module, Conv1D) else weight.shape[::-1]
    start, stop = (item.start, item.stop) if isinstance(item, Rows) else (0, outputs)
    kernel = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
    bias = parameter.name == "bias"
    width = 1 if bias else inputs
    wide = torch.promote_types(weight.dtype, torch.float32)
    step = max(1, _COLUMN_BYTES // (8 * width * max(1, len(tokens))))
    for first in range(start, stop, step):
        units = slice(first, min(stop, first + step))
        gradients = weight.new_zeros(len(tokens), (units.stop - first) * width, dtype=wide)
        for row, seen in zip(gradients, tokens, strict=True):
            found = seen.gradient(units, bias)
            if found is not None:
                row.copy_(found.flatten())
        kernel += (gradients @ update(gradients).T).double().cpu()
    return kernel


# Any other parameters: their gradients themselves


@dataclass(frozen=True)
class _Slice:
    """A range of one flattened parameter, and the block that it belongs to."""

    block: str
    parameter: str
    start: int
    stop: int


def _slices(model: PreTrainedModel, items: Sequence[tuple[str, Item]], row_bytes: int) -> Iterator[list[_Slice]]:
    """Packs parameters, cut where needed, into passes whose gradients fit."""
    parameters = dict(model.named_parameters())
    room = max(1, row_bytes // (torch.finfo(model.dtype).bits // 8))
    taken: list[_Slice] = []
    left = room
    for block, item in items:
        name = _parameter_of(item)
        start, end = _range(parameters[name], item)
        while start < end:
            if not left:
                yield taken
                taken, left = [], room
            stop = min(end, start + left)
            taken.append(_Slice(block, name, start, stop))
            start, left = stop, left - (stop - start)
    if taken:
        yield taken


def _range(parameter: Tensor, item: Item) -> tuple[int, int]:
    """Where the numbers of an item begin and end in its flattened parameter."""
    if not isinstance(item, Rows):
        return 0, parameter.numel()
    if item.expert is not None:
        first = item.expert * parameter.stride(0)
        return first + item.start * parameter.stride(1), first + item.stop * parameter.stride(1)
    return item.start * parameter.stride(0), item.stop * parameter.stride(0)


def _add(
    parts: dict[str, Tensor],
    model: PreTrainedModel,
    rows: Sequence[Batch],
    slices: Sequence[_Slice],
    update: Callable[[Tensor], Tensor],
    done: Callable[[], object],
) -> None:
    """Adds to the kernel what the gradients by some slices contribute; nothing holds them when it returns."""
    names = list(dict.fromkeys(item.parameter for item in slices))
    sizes = [item.stop - item.start for item in slices]
    gradients = torch.empty(len(rows), sum(sizes), dtype=model.dtype, device=model.device)
    for row, batch in zip(gradients, rows, strict=True):
        found = parameter_gradients(model, batch, names)
        for item, piece in zip(slices, row.split(sizes), strict=True):
            piece.copy_(found[item.parameter].flatten()[item.start : item.stop])
        done()
    for item, columns in zip(slices, gradients.split(sizes, dim=1), strict=True):
        for part in columns.split(max(1, _COLUMN_BYTES // (8 * len(rows))), dim=1):
            parts[item.block] += (part @ update(part).T).double().cpu()
