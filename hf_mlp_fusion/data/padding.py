"""Padding: which tokens of a batch are none, and how rows run without any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import DataError
from ..modeling.ffn import FFN
from .running import in_pieces
from .texts import Batch

__all__ = ["counted_tokens", "cut_padding", "first_tokens", "single_rows", "token_mask", "unpadded"]

_HIDDEN = -100.0  # a score that is added and lies below this hides a token: additive masks have -10,000 or less


def token_mask(batch: Batch, *, decoder: bool) -> Tensor | None:
    """Which tokens are no padding, `[batch, tokens]` bool (`[batch, choices, tokens]`), or None where all are.

    Args:
        batch: The batch. Where its mask says what each token may see (`[batch, heads or 1, tokens, tokens]`, floats
            that are added to scores or what is true where it may), padding is what none sees.
        decoder: The decoder's tokens of an encoder-decoder.
    """
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None:
        return None
    if not _is_square(mask, batch, decoder=decoder):
        return mask.bool()
    seen = mask > _HIDDEN if mask.is_floating_point() else mask.bool()
    return seen.any(dim=-2).flatten(1, -2).any(dim=1) if seen.dim() > 3 else seen.any(dim=-2)


def _is_square(mask: Tensor, batch: Batch, *, decoder: bool) -> bool:
    """Whether a mask says of each token what it may see."""
    prefix = "decoder_" if decoder else ""
    ids, embeddings = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}inputs_embeds")
    axes = ids.dim() if ids is not None else 2 if embeddings is None else embeddings.dim() - 1
    return mask.dim() == 4 or mask.dim() > axes


def counted_tokens(ffn: FFN, batch: Batch, tensor: Tensor) -> Tensor | None:
    """Which tokens of what passes through an FFN are no padding, bool, in its shape; None where all are.

    Args:
        ffn: The FFN.
        batch: The batch that is running.
        tensor: What passes, `[batch, tokens, d]`, or `[tokens, d]` where padding was cut off before.

    Raises:
        DataError: The batch's mask is of other tokens.
    """
    if ffn.spec.padding != "mask" or tensor.dim() != 3:
        return None
    mask = token_mask(batch, decoder=ffn.stack == "decoder")
    if mask is None or mask.shape == tensor.shape[:-1]:
        return mask
    if mask.numel() != tensor.shape[:-1].numel():  # where choices are rows, they are as many
        raise DataError(
            f"attention_mask {list(mask.shape)} does not say which of the {list(tensor.shape[:-1])} tokens are "
            "padding: give one number a token"
        )
    return mask.reshape(tensor.shape[:-1])


def cut_padding(ffns: Iterable[FFN], batches: Iterable[Batch]) -> Iterable[Batch]:
    """Batches without padding, row by row, where FFNs cannot tell it: experts, and models of raw sound.

    Args:
        ffns: The FFNs that batches are run for.
        batches: The batches.
    """
    alone = any(ffn.expert is not None or ffn.spec.padding == "cut" for ffn in ffns)
    return unpadded(batches) if alone else batches


def single_rows(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the rows of batches one by one, without padding."""
    return unpadded(in_pieces(batches, 1))


def unpadded(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches without padding as they are, and the rows of others one by one, without their padding.

    Experts see tokens of all rows in one heap, where padding cannot be told from text. Of several choices in one row,
    the longest keeps no padding. Rows that are nothing but padding are left out.
    """
    for batch in batches:
        if all((mask := token_mask(batch, decoder=decoder)) is None or mask.all() for decoder in (False, True)):
            yield batch
            continue
        for row in in_pieces([batch], 1):
            masks = [token_mask(row, decoder=decoder) for decoder in (False, True)]
            if any(mask is not None and not mask.any() for mask in masks):
                continue
            for mask, decoder in zip(masks, (False, True), strict=True):
                if mask is not None:
                    row = _with_columns(row, mask.flatten(0, -2).any(dim=0), decoder=decoder)
            yield row


def first_tokens(batch: Batch, count: int) -> Batch:
    """The first tokens of each row; whole rows, where there is more than text in them, which belongs to some tokens.

    Args:
        batch: The batch.
        count: How many tokens, at most.
    """
    others = (tensor for name, tensor in batch.items() if not name.endswith(("inputs_embeds", "mask")))
    if any(tensor.is_floating_point() and tensor.dim() > 1 for tensor in others):
        return batch
    for decoder in (False, True):
        if (tokens := _token_count(batch, decoder=decoder)) is not None and tokens > count:
            kept = torch.arange(tokens, device=next(iter(batch.values())).device) < count
            batch = _with_columns(batch, kept, decoder=decoder)
    return batch


def _token_count(batch: Batch, *, decoder: bool) -> int | None:
    prefix = "decoder_" if decoder else ""
    ids, embeddings = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}inputs_embeds")
    if ids is not None:
        return ids.shape[-1]
    return None if embeddings is None else embeddings.shape[-2]


def _with_columns(batch: Batch, kept: Tensor, *, decoder: bool) -> Batch:
    """A batch with some of its tokens alone.

    Args:
        batch: The batch.
        kept: Which tokens, `[tokens]` bool.
        decoder: They are the decoder's.
    """
    has_decoder = any(name.startswith("decoder_") for name in batch)
    columns = kept.nonzero()[:, 0]
    cut = {}
    for name, tensor in batch.items():
        of_decoder = name.startswith("decoder_") or (name == "labels" and has_decoder)
        axes: tuple[int, ...] = ()
        if of_decoder == decoder and tensor.dim() > 1:
            if name.endswith("mask") and _is_square(tensor, batch, decoder=decoder):
                axes = (-2, -1)
            elif name.endswith("inputs_embeds"):
                axes = (-2,)
            elif not tensor.is_floating_point() or name.endswith("mask"):  # no image beside a text
                axes = (-1,)
        for axis in axes:
            if tensor.shape[axis] == len(kept):
                tensor = tensor.index_select(axis, columns)
        cut[name] = tensor
    return cut
