"""Calibration data: what a user gives becomes batches, and batches run through a model become second moments."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    Batch,
    Progress,
    counted_tokens,
    cut_padding,
    evaluating,
    fitting_pieces,
    forward_work,
    inputs_of,
    make_batches,
    objective_of,
    on_device,
    read_texts,
    row_count,
    sample_batches,
    single_rows,
    text_column,
    tokenizer_of,
)
from ..errors import DataError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..tensors import FFNWeights, Moments, MomentSums

__all__ = [
    "NTK_SAMPLES",
    "SAMPLED",
    "SAMPLES",
    "calibration_batches",
    "collect_moments",
    "first_rows",
    "kernel_rows",
    "moments_work",
    "with_decoder_inputs",
]

SAMPLES = 512
"""Rows of tokens (sentences, or windows of 128 tokens for language models) that a calibration on texts uses."""

SAMPLED = "sampled"
"""Stands for calibration on sequences that the model writes itself."""

NTK_SAMPLES = 32
"""Rows on which kernel sizes are matched."""

NTK_TOKENS = 128
"""Tokens of each such row, at most."""


def calibration_batches(model: PreTrainedModel, calibration: Any, tokenizer: Any = None) -> list[Batch]:
    """Turns what a user gives for calibration into batches.

    Args:
        model: The model to calibrate.
        calibration: Batches of model inputs (mappings of tensors), texts, a text file or tabular file, the name of a
            data set, a `datasets.Dataset` with a column of texts, or `"sampled"`: what the model writes itself.
        tokenizer: The model's tokenizer; if not given and needed, it is loaded from where the model came from.

    Raises:
        DataError: There is nothing in it, or no tokenizer to be had.
    """
    if calibration == SAMPLED:
        return sample_batches(model)
    if isinstance(calibration, str | Path):
        calibration = read_texts(calibration)
    elif hasattr(calibration, "column_names"):  # a `datasets.Dataset`; the library need not be imported to tell
        calibration = calibration[text_column(calibration.column_names)]
    items = list(calibration)
    if not items:
        raise DataError("calibration is empty: give texts or batches of model inputs")
    if isinstance(items[0], Mapping):
        given = ({name: torch.as_tensor(value) for name, value in item.items()} for item in items)
        return [with_decoder_inputs(model, batch) for batch in given]
    if not all(isinstance(item, str) for item in items):
        raise DataError(
            f"calibration holds {type(items[0]).__name__}: give texts or batches (mappings) of model inputs"
        )
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    if objective_of(model) not in LANGUAGE_OBJECTIVES:  # a row a text: those of like length together pad least
        items = sorted(items[:SAMPLES], key=len)
    return make_batches(model, tokenizer, items, samples=SAMPLES, batch_size=16)


def with_decoder_inputs(model: PreTrainedModel, batch: Batch) -> Batch:
    """Gives a batch with labels what the decoder sees, the labels one to the right, and which of it is no padding.

    Args:
        model: The model. Without a decoder, the batch stays as it is.
        batch: The batch. What it has of these already stays.
    """
    labels = batch.get("labels")
    if not model.config.is_encoder_decoder or labels is None or labels.dim() != 2:
        return batch
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    counted = shifted != -100
    ids = shifted.masked_fill(~counted, model.config.pad_token_id or 0)
    return {"decoder_input_ids": ids, "decoder_attention_mask": counted.long()} | batch


def first_rows(model: PreTrainedModel, batches: Sequence[Batch], rows: int = NTK_SAMPLES) -> list[Batch]:
    """The first rows of batches, with the labels that a kernel of a language model needs.

    Args:
        model: The model.
        batches: Batches; where a language model's have no labels, every token is one.
        rows: How many rows, at most.
    """
    chosen: list[Batch] = []
    for batch in batches:
        taken = {name: tensor[: rows - sum(map(row_count, chosen))] for name, tensor in batch.items()}
        if not row_count(taken):
            break
        if objective_of(model) in LANGUAGE_OBJECTIVES and "labels" not in taken:
            decoder = "decoder_" if "decoder_input_ids" in taken else ""
            ids, mask = taken[f"{decoder}input_ids"], taken.get(f"{decoder}attention_mask")
            taken["labels"] = ids if mask is None else ids.masked_fill(mask == 0, -100)
        chosen.append(taken)
    return chosen


def kernel_rows(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Batch]:
    """The rows on which kernel sizes are matched: the first ones, one by one, without padding and not too long.

    Args:
        model: The model.
        batches: Batches; where a language model's have no labels, every token is one.
    """
    return [_cut(row, NTK_TOKENS) for row in single_rows(first_rows(model, batches))]


def _cut(row: Batch, tokens: int) -> Batch:
    """The first tokens of a row; the whole row, where a tensor has another shape than tokens have."""
    lengths = {tensor.shape[-1] for name, tensor in row.items() if name.endswith("input_ids")}
    if any(tensor.dim() != 2 or tensor.shape[1] not in lengths for tensor in row.values()):
        return row
    return {name: tensor[:, :tokens] for name, tensor in row.items()}


class _FinishedError(Exception):
    """Ends a forward once the FFNs of interest have run."""


def collect_moments(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    units: Mapping[str, FFNWeights] | None = None,
) -> dict[str, Moments]:
    """Runs a model up to some FFNs and takes the second moments of their hidden units and outputs.

    Padding does not count. The moments are about the means where an FFN has an output bias.

    Args:
        model: The model, its earlier FFNs fused or not.
        ffns: FFNs that are not fused yet, in the model's order.
        batches: Batches of tokens.
        units: Other hidden units to take the moments of, by FFN name; the output stays that of the FFN itself.

    Returns:
        The moments by FFN name. An expert that saw no token has none.
    """
    sums = {ffn.name: MomentSums(centred=ffn.read().down_bias is not None) for ffn in ffns}
    running: dict[str, Batch] = {}
    hooks = [
        hook
        for ffn in ffns
        for hook in _watch(ffn, sums[ffn.name], running, None if units is None else units[ffn.name])
    ]
    layers = _layers(model, ffns)
    waiting: set[nn.Module] = set()

    def stop(module: nn.Module, *_: object) -> None:
        waiting.discard(module)
        if not waiting:
            raise _FinishedError

    hooks += [layer.register_forward_hook(stop) for layer in layers]
    count = sum(map(row_count, batches))
    work = moments_work(model, ffns, batches)
    mend = "fewer or shorter calibration rows shorten it"
    try:
        with evaluating(model), Progress(count, "moments", work=work, shorter=mend) as progress:
            for batch in fitting_pieces(model, cut_padding(ffns, batches)):
                running["batch"] = on_device(batch, model)
                waiting.update(layers)
                with contextlib.suppress(_FinishedError):
                    model(**inputs_of(running["batch"]))
                progress.update(row_count(batch))
    finally:
        for hook in hooks:
            hook.remove()
    # One after another: the sums of one are gone before the moments of the next are there.
    return {name: item.moments() for name in list(sums) if (item := sums.pop(name)).count}


def moments_work(model: PreTrainedModel, ffns: Sequence[FFN], batches: Iterable[Batch]) -> float:
    """About how many operations `collect_moments` takes."""
    last, everything = ffns[-1], list(find_ffns(model))
    passed = 1 + max(number for number, ffn in enumerate(everything) if ffn.name == last.name)
    return forward_work(model, batches) * passed / max(1, len(everything))


def _layers(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[nn.Module]:
    """The smallest modules that hold the FFNs of one layer each: when all have run, the forward may end.

    The order of a model's modules is not always that in which they run (CLIP sees the image first).
    """
    layers = []
    for _, group in itertools.groupby(ffns, key=lambda ffn: (ffn.stack, ffn.layer)):
        names = [ffn.full_name.replace(".", "/") for ffn in group]
        layers.append(model.get_submodule(os.path.commonpath(names).replace("/", ".")))
    return layers


def _watch(
    ffn: FFN, sums: MomentSums, running: dict[str, Batch], units: FFNWeights | None
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    inputs: list[Tensor] = []

    def add(hidden: Tensor, output: Tensor) -> None:
        if units is not None:
            hidden = ffn.hidden(inputs.pop(), units)
        mask = counted_tokens(ffn, running["batch"], output)
        if mask is None:
            sums.add(hidden.flatten(0, -2), output.flatten(0, -2))
        else:
            sums.add(hidden[mask], output[mask])

    yield from ffn.watch(None if units is None else inputs.append, add)
