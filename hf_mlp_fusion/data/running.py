"""How a batch is run through a model: in eval mode, on its own device, and with padding told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import DataError
from ..modeling.ffn import FFN
from .texts import Batch

__all__ = [
    "counted_tokens",
    "cut_padding",
    "evaluating",
    "few_logits",
    "final_hidden_state",
    "in_pieces",
    "inputs_of",
    "on_device",
    "router_logits",
    "row_count",
    "single_rows",
    "token_mask",
    "unpadded",
]


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Puts models into eval mode, without gradients, and back."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def row_count(batch: Batch) -> int:
    """Rows of a batch, whatever its inputs are called."""
    return len(batch["input_ids"] if "input_ids" in batch else next(iter(batch.values())))


def inputs_of(batch: Batch) -> Batch:
    """The arguments of a forward: a batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def on_device(batch: Batch, model: PreTrainedModel) -> Batch:
    """A batch on the device of a model."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def final_hidden_state(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Runs a model up to its last hidden state (the decoder's, in an encoder-decoder), `[batch, tokens, d]`.

    A model of texts and images has none; there it is the two embeddings, `[batch, 1, d of both]`.
    """
    outputs = model.base_model(**inputs_of(batch), output_hidden_states=True)
    states = getattr(outputs, "decoder_hidden_states", None) or getattr(outputs, "hidden_states", None)
    if states is None:
        return torch.cat([outputs.text_embeds, outputs.image_embeds], dim=-1)[:, None]
    return states[-1]


@contextlib.contextmanager
def few_logits(model: PreTrainedModel, tokens: int = 1) -> Iterator[list[Tensor]]:
    """Lets a language model's output embeddings see the first tokens of each row alone: logits of all may be huge.

    No forward can be stopped before its head, and not all have an argument that spares it.

    Args:
        model: The model; without output embeddings, nothing changes.
        tokens: How many tokens.

    Yields:
        What the output embeddings would have seen, `[batch, tokens, d]` a forward.
    """
    seen: list[Tensor] = []
    head = model.get_output_embeddings()
    if head is None:
        yield seen
        return

    def show(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][:, :tokens], *arguments[1:])

    hook = head.register_forward_pre_hook(show)
    try:
        yield seen
    finally:
        hook.remove()


def token_mask(batch: Batch, *, decoder: bool) -> Tensor | None:
    """Which tokens are no padding, `[batch, tokens]` bool, or None where all are.

    Args:
        batch: The batch.
        decoder: The decoder's tokens of an encoder-decoder.
    """
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    return None if mask is None else mask.bool()


def counted_tokens(ffn: FFN, batch: Batch, tensor: Tensor) -> Tensor | None:
    """Which tokens of what passes through an FFN are no padding, `[batch, tokens]` bool; None where all are.

    Args:
        ffn: The FFN.
        batch: The batch that is running.
        tensor: What passes, `[batch, tokens, d]`, or `[tokens, d]` where padding was cut off before.
    """
    if ffn.spec.padding != "mask" or tensor.dim() != 3:
        return None
    return token_mask(batch, decoder=ffn.stack == "decoder")


def cut_padding(ffns: Iterable[FFN], batches: Iterable[Batch]) -> Iterable[Batch]:
    """Batches without padding, row by row, where FFNs cannot tell it: experts, and models of raw sound.

    Args:
        ffns: The FFNs that batches are run for.
        batches: The batches.
    """
    alone = any(ffn.expert is not None or ffn.spec.padding == "cut" for ffn in ffns)
    return unpadded(batches) if alone else batches


def router_logits(outputs: Any) -> Iterator[tuple[bool, Tensor]]:
    """Yields the router logits of each sparse layer, those of the encoder first.

    Args:
        outputs: What a Switch Transformer returned with `output_router_logits=True`.

    Returns:
        Whether the layer is the decoder's, and its logits, `[batch, tokens, experts]`.

    Raises:
        DataError: There are none.
    """
    found = False
    for name in ("router_logits", "encoder_router_logits", "decoder_router_logits"):
        for logits in outputs.get(name) or ():
            found = True
            yield name.startswith("decoder"), logits
    if not found:
        raise DataError("the outputs hold no router logits: call the model with output_router_logits=True")


def in_pieces(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yields batches cut into pieces.

    Args:
        batches: Batches, of any size.
        rows: Rows of a piece, at most.
    """
    for batch in batches:
        count = row_count(batch)
        for start in range(0, count, rows):
            yield {
                # What all rows share (positions, say) stays whole.
                name: tensor[start : start + rows] if tensor.dim() and len(tensor) == count else tensor
                for name, tensor in batch.items()
            }


def single_rows(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the rows of batches one by one, without padding."""
    return unpadded(in_pieces(batches, 1))


def unpadded(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches without padding as they are, and the rows of others one by one, without their padding.

    Experts see tokens of all rows in one heap, where padding cannot be told from text.
    """
    for batch in batches:
        if all((mask := token_mask(batch, decoder=decoder)) is None or mask.all() for decoder in (False, True)):
            yield batch
            continue
        for row in in_pieces([batch], 1):
            for decoder in (False, True):
                mask = token_mask(row, decoder=decoder)
                if mask is None:
                    continue
                for name, tensor in row.items():
                    of_decoder = name.startswith("decoder_") or (name == "labels" and "decoder_input_ids" in row)
                    if of_decoder == decoder and tensor.shape[:2] == mask.shape:  # and no image beside a text
                        row[name] = tensor[mask][None]
            yield row
