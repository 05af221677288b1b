"""Objectives: what a model is asked to predict, as `labels` of a batch, made from plain texts.

An objective is one function and one line in `OBJECTIVES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from ..errors import DataError
from .texts import Batch, pad_batch, special_tokens, token_rows, token_windows

__all__ = ["LANGUAGE_OBJECTIVES", "OBJECTIVES", "longest_row", "make_batches", "objective_of"]

_MASKED_SHARE = 0.15  # of tokens (BERT, T5)
_SPAN_LENGTH = 3  # tokens of a corrupted span: T5's mean length, here every span's


def objective_of(model: PreTrainedModel) -> str:
    """Names the objective of a model's head: a key of `OBJECTIVES`.

    Args:
        model: A stock or fused model.
    """
    names = [cls.__name__ for cls in type(model).__mro__]

    def among(mapping: dict[str, Any]) -> bool:
        return any(name in mapping.values() for name in names)

    if among(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
        return "spans"
    if among(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return "masked"
    if among(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return "causal"
    if among(modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES):
        return "choices"
    return "none"


def make_batches(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    samples: int | None = None,
    max_length: int = 128,
    batch_size: int = 8,
    seed: int = 0,
) -> list[Batch]:
    """Makes batches that suit a model: labelled windows for language models, one row a text for the others.

    Args:
        model: The model; its head decides the objective, its config the longest input.
        tokenizer: Its tokenizer.
        texts: The texts.
        samples: Rows to make, at most; all if not given.
        max_length: Tokens of a row, at most.
        batch_size: Rows of a batch.
        seed: Seed of what is masked. The same texts and seed give the same batches.

    Raises:
        DataError: The texts give no row, or the tokenizer lacks the mask or sentinel tokens that the objective needs.
    """
    objective = objective_of(model)
    max_length = longest_row(model, max_length)
    cut = token_windows if objective in LANGUAGE_OBJECTIVES else token_rows
    rows = itertools.islice(cut(texts, tokenizer, max_length), samples)
    batches = []
    numbered = enumerate(rows)
    while chunk := list(itertools.islice(numbered, batch_size)):
        batches.append(OBJECTIVES[objective](model, tokenizer, chunk, seed))
    if not batches:
        raise DataError("the texts give no row of tokens: give more of them")
    return batches


def longest_row(model: PreTrainedModel, wanted: int) -> int:
    """The most tokens that a row for a model may have.

    Args:
        model: The model.
        wanted: How many it would be well to have.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and limit in (None, module.num_embeddings)
    ]
    if not limit:
        limit = min((table.num_embeddings for table in tables), default=None)
    if not limit:
        return wanted
    # RoBERTa and its like count positions from behind the padding token's id on, and mark that row of their table.
    unused = max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)
    return min(wanted, int(limit) - unused)


Rows = Sequence[tuple[int, list[int]]]
"""Rows of token ids, each with its number, which seeds what is masked in it."""


def _none(model: PreTrainedModel, tokenizer: Any, rows: Rows, seed: int) -> Batch:
    ids, mask = pad_batch([row for _, row in rows], _padding(tokenizer))
    batch = {"input_ids": ids, "attention_mask": mask}
    # A head without language makes its decoder's inputs itself.
    if model.config.is_encoder_decoder and model.base_model is model and "EncoderModel" not in type(model).__name__:
        start, alone = pad_batch([[model.config.decoder_start_token_id]] * len(rows), 0)
        batch |= {"decoder_input_ids": start, "decoder_attention_mask": alone}
    return batch


def _choices(model: PreTrainedModel, tokenizer: Any, rows: Rows, seed: int) -> Batch:
    """Each text is the one choice of its row, `[batch, 1, tokens]`."""
    return {name: tensor[:, None] for name, tensor in _none(model, tokenizer, rows, seed).items()}


def _causal(model: PreTrainedModel, tokenizer: Any, rows: Rows, seed: int) -> Batch:
    ids, mask = pad_batch([row for _, row in rows], _padding(tokenizer))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def _masked(model: PreTrainedModel, tokenizer: Any, rows: Rows, seed: int) -> Batch:
    """15 % of the tokens become the mask token, at least one a row (BERT, without its random and kept tokens)."""
    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token, which a masked language model needs")
    special = set(tokenizer.all_special_ids)
    inputs, labels = [], []
    for number, row in rows:
        free = [position for position, token in enumerate(row) if token not in special]
        count = max(1, round(_MASKED_SHARE * len(free)))
        chosen = set(np.random.default_rng((seed, number)).permutation(free)[:count].tolist())
        inputs.append([tokenizer.mask_token_id if at in chosen else token for at, token in enumerate(row)])
        labels.append([token if at in chosen else -100 for at, token in enumerate(row)])
    ids, mask = pad_batch(inputs, _padding(tokenizer))
    return {"input_ids": ids, "attention_mask": mask, "labels": pad_batch(labels, -100)[0]}


def _spans(model: PreTrainedModel, tokenizer: Any, rows: Rows, seed: int) -> Batch:
    """T5's span corruption: spans of 3 tokens, 15 % in all, become sentinels; the decoder spells them out."""
    sentinels = list(_sentinels(tokenizer))
    inputs, targets = [], []
    _, suffix = special_tokens(tokenizer)
    for number, row in rows:
        body = row[: len(row) - len(suffix)]
        corrupted, target = _corrupt(body, sentinels, np.random.default_rng((seed, number)))
        inputs.append(corrupted + suffix)
        targets.append(target + suffix)
    ids, mask = pad_batch(inputs, _padding(tokenizer))
    start = model.config.decoder_start_token_id
    decoder_ids, decoder_mask = pad_batch([[start, *target[:-1]] for target in targets], _padding(tokenizer))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
        "labels": pad_batch(targets, -100)[0],
    }


def _corrupt(body: list[int], sentinels: list[int], random: np.random.Generator) -> tuple[list[int], list[int]]:
    """Replaces spans of a row by sentinels; returns what is left, and the sentinels each followed by its span."""
    length = min(_SPAN_LENGTH, max(1, len(body) // 2))
    count = max(1, min(round(_MASKED_SHARE * len(body) / length), len(sentinels)))
    kept = len(body) - count * length  # cut into gaps, of which only the last may be empty
    cuts = np.sort(random.permutation(np.arange(1, kept + 1))[:count])
    corrupted, target, at = [], [], 0
    for sentinel, gap in zip(sentinels, np.diff(cuts, prepend=0).tolist(), strict=False):
        corrupted += [*body[at : at + gap], sentinel]
        at += gap + length
        target += [sentinel, *body[at - length : at]]
    return corrupted + body[at:], target


def _sentinels(tokenizer: Any) -> Iterator[int]:
    vocabulary = tokenizer.get_vocab()
    if "<extra_id_0>" not in vocabulary:
        raise DataError("the tokenizer has no sentinel tokens <extra_id_0>, ..., which span corruption needs")
    for number in itertools.count():
        if f"<extra_id_{number}>" not in vocabulary:
            return
        yield vocabulary[f"<extra_id_{number}>"]


def _padding(tokenizer: Any) -> int:
    """A token to pad with; which one does not matter where the attention mask hides it."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


OBJECTIVES: dict[str, Callable[[PreTrainedModel, Any, Rows, int], Batch]] = {
    "none": _none,
    "choices": _choices,
    "causal": _causal,
    "masked": _masked,
    "spans": _spans,
}
"""Objectives by name: functions of model, tokenizer, numbered rows and seed that make one batch."""

LANGUAGE_OBJECTIVES = ("causal", "masked", "spans")
"""The objectives with labels, under which a model has a loss on plain texts."""
