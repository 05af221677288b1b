"""What a user hands in as data, item by item: texts, or batches of a model's inputs.

Each item is judged by what it is, never by what the first one was.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import DataError
from .objectives import objective_of
from .texts import Batch, pad_batch, text_column

__all__ = ["as_batches", "given_items", "with_decoder_inputs"]

_ROWS = 16  # of a batch that is made of single rows

_AXES = {"input_ids": 2, "inputs_embeds": 3, "input_values": 2, "input_features": 3, "pixel_values": 4}
"""Axes of a batch of the inputs that models have; a row has one less."""


def given_items(model: PreTrainedModel, given: Any, what: str = "calibration") -> Iterator[str | Batch]:
    """Sorts out what a user gave.

    Args:
        model: The model that it is for; its forward tells what inputs are.
        given: An iterable of texts, of batches, or of rows (mappings of tensors, arrays or lists; `BatchEncoding`s;
            token ids), such as a list, a generator or a `DataLoader`; one batch by itself; a table (`datasets`,
            pandas, polars, pyarrow) of texts or of rows. What is no input of the model is left out.
        what: What it is called in messages.

    Yields:
        Texts, blank ones left out; or batches, with what a decoder sees where it follows from the labels.

    Raises:
        DataError: An item is neither, or another kind than those before it.
    """
    rows: list[Batch] = []
    kinds: set[type] = set()
    accepted = _accepted(model)
    for number, item in enumerate(_items(given, accepted), 1):
        name = f"{what} item {number}"
        found = item if isinstance(item, str) else _inputs(model, item, name, accepted)
        kinds.add(str if isinstance(found, str) else dict)
        if len(kinds) > 1:
            raise DataError(f"{name} is a {'text' if isinstance(found, str) else 'batch'}, and those before are not")
        if isinstance(found, str):
            if "input_ids" not in accepted:
                raise DataError(
                    f"{name} is a text, and {type(model).__name__} takes none: give batches of {_wanted(accepted)}"
                )
            if found.strip():
                yield found
            continue
        batches, alone = _batches_of(model, found, name)
        yield from (with_decoder_inputs(model, batch) for batch in batches)
        rows += alone
        while len(rows) >= _ROWS:
            yield with_decoder_inputs(model, _together(model, rows[:_ROWS]))
            rows = rows[_ROWS:]
    if rows:
        yield with_decoder_inputs(model, _together(model, rows))


def as_batches(model: PreTrainedModel, batches: Iterable[Any]) -> Iterator[Batch]:
    """Batches as a measure takes them: `given_items` that must be batches.

    Args:
        model: The model that they are for.
        batches: The batches, as any Trainer's data loader gives them.

    Raises:
        DataError: One is no batch of its inputs.
    """
    for number, item in enumerate(given_items(model, batches, "batches:"), 1):
        if isinstance(item, str):
            raise DataError(f"batches: item {number} is a text: a measure needs batches of model inputs")
        yield item


def with_decoder_inputs(model: PreTrainedModel, batch: Batch) -> Batch:
    """Gives a batch with labels what the decoder sees, the labels one to the right, and which of it is no padding.

    Args:
        model: The model. Unless it has a decoder that writes, the batch stays as it is.
        batch: The batch. What it has of these already stays.
    """
    labels = batch.get("labels")
    if not model.config.is_encoder_decoder or labels is None or labels.dim() != 2:
        return batch
    if model.get_output_embeddings() is None:  # labels of a classifier
        return batch
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    counted = shifted != -100
    ids = shifted.masked_fill(~counted, model.config.pad_token_id or 0)
    return {"decoder_input_ids": ids, "decoder_attention_mask": counted.long()} | batch


def _items(given: Any, accepted: set[str]) -> Iterable[Any]:
    """The items of what was given, whatever holds them."""
    if isinstance(given, Mapping):
        if set(given) & accepted:
            return [given]
        if any(hasattr(value, "column_names") for value in given.values()):
            first = next(iter(given))
            raise DataError(f"calibration holds several data sets ({', '.join(given)}): give one, such as [{first!r}]")
        columns = [name for name, value in given.items() if _is_text(value) and not isinstance(value, str)]
        return given[text_column(columns)] if columns else [given]
    if isinstance(given, Tensor) or (hasattr(given, "dtype") and hasattr(given, "ndim") and given.ndim > 1):
        return [{"input_ids": given}]
    # `datasets` and pyarrow have `column_names`, pandas and polars `columns`; none need be imported to tell.
    names = getattr(given, "column_names", None) or getattr(given, "columns", None)
    if names is not None and not callable(names):
        names = [str(name) for name in names]
        if not set(names) & accepted:
            column = text_column(names)
            if not hasattr(given, "__len__"):
                return (row[column] for row in given)
            texts = given[column]
            return texts.to_pylist() if hasattr(texts, "to_pylist") else texts
        if not hasattr(given, "column_names"):
            return (dict(zip(names, row, strict=True)) for row in zip(*(given[name] for name in names), strict=True))
        if hasattr(given, "to_pylist"):
            return given.to_pylist()
    try:
        return iter(given)
    except TypeError as error:
        raise DataError(
            f"calibration is {type(given).__name__}: give texts or batches (mappings) of model inputs"
        ) from error


def _accepted(model: PreTrainedModel) -> set[str]:
    """The names of the arguments of a model's forward, also where its own class hands them on."""
    names: set[str] = set()
    for cls in type(model).__mro__:
        if cls is torch.nn.Module:
            break
        if (forward := vars(cls).get("forward")) is not None:
            parameters = inspect.signature(forward).parameters.values()
            names |= {item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)}
            if all(item.kind != item.VAR_KEYWORD for item in parameters):
                break
    return names - {"self"}


def _inputs(model: PreTrainedModel, item: Any, name: str, accepted: set[str]) -> str | dict[str, Any]:
    """What of an item a model takes; or the text in it."""
    if not isinstance(item, Mapping):
        if isinstance(item, bytes) or not (isinstance(item, Tensor | Sequence) or hasattr(item, "__array__")):
            raise DataError(f"{name} is {_described(item)}: give texts or batches (mappings) of model inputs")
        item = {"input_ids": item}
    inputs = {key: value for key, value in item.items() if key in accepted and value is not None}
    if set(inputs) & set(_AXES):
        return inputs
    texts = [key for key, value in item.items() if isinstance(value, str)]
    if texts:
        text: str = item[text_column(texts, source=name)]
        return text
    wanted = f"the inputs that {type(model).__name__} takes ({_wanted(accepted)})"
    raise DataError(f"{name} has none of {wanted}: {_described(item)}")


def _wanted(accepted: set[str]) -> str:
    return " or ".join(key for key in _AXES if key in accepted)


def _batches_of(model: PreTrainedModel, inputs: dict[str, Any], name: str) -> tuple[list[Batch], list[Batch]]:
    """An item as batches, and as single rows: it is one or the other."""
    main = next(key for key in _AXES if key in inputs)
    try:
        tensors = {key: torch.as_tensor(value) for key, value in inputs.items() if key == main or not _is_text(value)}
        if main == "input_ids":
            if tensors[main].is_floating_point():
                raise DataError(f"{name}: input_ids are floats, and token ids are whole numbers")
            tensors[main] = tensors[main].long()
    except (TypeError, ValueError, RuntimeError) as error:
        columns = [value for value in inputs.values() if isinstance(value, Sequence)]
        if len(columns) < len(inputs) or len({len(column) for column in columns}) > 1 or not columns[0]:
            raise DataError(f"{name} holds no tensors of numbers: {str(error).splitlines()[0]:.100}") from error
        if not all(isinstance(value, Sequence) and not isinstance(value, str) for value in inputs[main]):
            raise DataError(f"{name} holds no token ids: {_described(inputs[main][0])}") from error
        rows = [dict(zip(inputs, values, strict=True)) for values in zip(*columns, strict=True)]
        return [], [row for item in rows for row in _batches_of(model, item, name)[1]]  # texts of several lengths
    axes = _AXES[main] + (objective_of(model) == "choices" and main in ("input_ids", "inputs_embeds"))
    missing = axes - tensors[main].dim()
    if missing not in (0, 1) or not tensors[main].numel():
        raise DataError(f"{name}: {main} is {list(tensors[main].shape)}, and a batch of it has {axes} axes")
    if missing and tensors[main].dim() == 1:
        return [], [tensors]
    if missing:
        return [{key: tensor[None] for key, tensor in tensors.items()}], []
    count = len(tensors[main])
    for key, tensor in tensors.items():
        shared = tensor.dim() == 0 or len(tensor) == 1 or "position_ids" in key  # what all rows share
        if not shared and len(tensor) != count:
            raise DataError(f"{name}: {main} has {count} rows, {key} {len(tensor)}")
    mask, ids = tensors.get("attention_mask"), tensors.get("input_ids")
    if mask is not None and ids is not None and mask.dim() == ids.dim() and mask.shape != ids.shape:
        raise DataError(f"{name}: input_ids is {list(ids.shape)}, attention_mask {list(mask.shape)}")
    return [tensors], []


def _together(model: PreTrainedModel, rows: Sequence[Batch]) -> Batch:
    """Rows of tokens, or of raw sound, as one batch, padded on the right."""
    main = next(key for key in _AXES if key in rows[0])
    padding = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows if key in row]
        if len(values) < len(rows):
            raise DataError(f"{key} is given for some rows alone: give it for all, or for none")
        if values[0].dim() != 1:
            batch[key] = torch.stack(values)
        elif values[0].is_floating_point():
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        else:
            filler = padding if key.endswith("input_ids") else -100 if "label" in key else 0
            batch[key], _ = pad_batch([value.tolist() for value in values], filler)
    if "attention_mask" not in batch and batch[main].dim() == 2:
        batch["attention_mask"] = pad_batch([[1] * len(row[main]) for row in rows], 0)[0]
    return batch


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], str))


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"its keys are {', '.join(map(str, itertools.islice(value, 8))) or 'none'}"
    return "None" if value is None else f"of type {type(value).__name__}"
