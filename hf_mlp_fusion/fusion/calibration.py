"""Calibration data: what a user gives becomes batches, and batches run through a model become second moments."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    Batch,
    Progress,
    cut_padding,
    evaluating,
    first_tokens,
    fitting_pieces,
    forward_work,
    given_items,
    inputs_of,
    longest_row,
    make_batches,
    objective_of,
    on_device,
    read_texts,
    row_count,
    rows_of,
    run_on,
    sample_batches,
    single_rows,
    token_mask,
    token_rows,
    tokenizer_of,
)
from ..errors import DataError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..tensors import FFNWeights, Moments, MomentSums
from .enough import HELD_OUT, LENGTH, ROWS, enough_rows, token_count
from .watching import Running, watch_moments

__all__ = [
    "NTK_SAMPLES",
    "SAMPLED",
    "calibration_batches",
    "collect_moments",
    "first_rows",
    "hold_out",
    "kernel_rows",
    "moments_work",
    "run_watched",
]

SAMPLED = "sampled"
"""Stands for calibration on sequences that the model writes itself."""

_SAMPLED_ROWS = ROWS // 4

NTK_SAMPLES = 32
"""Rows on which kernel sizes are matched."""

NTK_TOKENS = 128
"""Tokens of each such row, at most."""


def calibration_batches(model: PreTrainedModel, calibration: Any, tokenizer: Any = None) -> list[Batch]:
    """Turns what a user gives for calibration into batches.

    Args:
        model: The model to calibrate.
        calibration: Batches of model inputs (mappings of tensors) in a list or a data loader, rows of them, one batch
            by itself, texts, a text file or tabular file, the name of a data set, a table (`datasets`, pandas) with a
            column of texts, or `"sampled"`: what the model writes itself. Of texts, and of what has no length, as a
            generator, so many are taken as give `SAMPLES` rows and `TOKENS` tokens.
        tokenizer: The model's tokenizer; if not given and needed, it is loaded from where the model came from.

    Returns:
        Batches. On the last rows of them (`hold_out`) fusion does not calibrate, but tells its error.

    Raises:
        DataError: There is nothing in it, or no tokenizer to be had.
    """
    if isinstance(calibration, str) and calibration == SAMPLED:
        return sample_batches(model, _SAMPLED_ROWS)
    if isinstance(calibration, str | Path):
        calibration = read_texts(calibration)
    items = given_items(model, calibration)
    first = next(items, None)
    if first is None:
        raise DataError("calibration is empty: give texts or batches of model inputs")
    given: Iterator[Any] = itertools.chain([first], items)
    if not isinstance(first, str):
        whole = hasattr(calibration, "__len__")
        return list(given) if whole else enough_rows(given, lambda batch: (row_count(batch), token_count(batch)))
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    texts: Iterable[str] = given
    longest = longest_row(model, LENGTH)
    if objective_of(model) not in LANGUAGE_OBJECTIVES:  # a row a text: those of like length together pad least
        chosen = enough_rows(texts, lambda text: (1, sum(map(len, token_rows([text], tokenizer, longest)))))
        count = len(chosen) - _held_out(len(chosen))
        texts = sorted(chosen[:count], key=len) + sorted(chosen[count:], key=len)
        return make_batches(model, tokenizer, texts, batch_size=16)
    return make_batches(model, tokenizer, texts, samples=ROWS * LENGTH // longest, batch_size=16)


def hold_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Parts batches into those to calibrate on and the last rows, one of 17, by which the error is told.

    Args:
        batches: The batches.
    """
    left = sum(map(row_count, batches))
    left -= _held_out(left)
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    for batch in batches:
        count = row_count(batch)
        cut = max(0, min(count, left))
        for part, start, stop in ((parts[0], 0, cut), (parts[1], cut, count)):
            if start < stop:
                part.append(rows_of(batch, start, stop))
        left -= count
    return parts


def _held_out(rows: int) -> int:
    return min(HELD_OUT, rows * HELD_OUT // ROWS)


def first_rows(model: PreTrainedModel, batches: Sequence[Batch], rows: int = NTK_SAMPLES) -> list[Batch]:
    """The first rows of batches, with the labels that a kernel of a language model needs.

    Args:
        model: The model.
        batches: Batches; where a language model's have no labels, every token is one.
        rows: How many rows, at most.
    """
    chosen: list[Batch] = []
    for batch in batches:
        left = rows - sum(map(row_count, chosen))
        if not left:
            break
        taken = rows_of(batch, 0, left)
        decoder = "decoder_" if "decoder_input_ids" in taken else ""
        ids = taken.get(f"{decoder}input_ids")  # there are none where embeddings are given
        if objective_of(model) in LANGUAGE_OBJECTIVES and "labels" not in taken and ids is not None:
            mask = token_mask(taken, decoder=bool(decoder))
            taken["labels"] = ids if mask is None else ids.masked_fill(~mask, -100)
        chosen.append(taken)
    return chosen


def kernel_rows(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Batch]:
    """The rows on which kernel sizes are matched: the first ones, one by one, without padding and not too long.

    Args:
        model: The model.
        batches: Batches; where a language model's have no labels, every token is one.
    """
    return [first_tokens(row, NTK_TOKENS) for row in single_rows(first_rows(model, batches))]


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

    def watch(ffn: FFN, running: Running) -> Iterator[RemovableHandle]:
        return watch_moments(ffn, sums[ffn.name], running, None if units is None else units[ffn.name])

    run_watched(model, ffns, batches, watch)
    # One after another: the sums of one are gone before the moments of the next are there.
    return {name: item.moments() for name in list(sums) if (item := sums.pop(name)).count}


def run_watched(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    watch: Callable[[FFN, Running], Iterator[RemovableHandle]],
) -> None:
    """Runs a model on batches up to some FFNs, and no further.

    Args:
        model: The model.
        ffns: The FFNs, in the model's order.
        batches: The batches.
        watch: Hooks an FFN, to see what passes through it.
    """
    running = Running()
    hooks = [hook for ffn in ffns for hook in watch(ffn, running)]
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
            for batch in fitting_pieces(model, cut_padding(ffns, running.numbered(batches))):
                running.batch = on_device(batch, model)
                waiting.update(layers)
                with run_on(running.name), contextlib.suppress(_FinishedError):
                    model(**inputs_of(running.batch))
                progress.update(row_count(batch))
    finally:
        for hook in hooks:
            hook.remove()


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
