"""How a batch is run through a model: in eval mode, on its own device, whatever the model's head takes and returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import DataError
from .texts import Batch

__all__ = [
    "evaluating",
    "few_logits",
    "final_hidden_state",
    "float_outputs",
    "in_pieces",
    "inputs_of",
    "logits_of",
    "on_device",
    "router_logits",
    "row_count",
    "rows_of",
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
    return len(
        batch["input_ids"] if "input_ids" in batch else next(tensor for tensor in batch.values() if tensor.dim())
    )


def inputs_of(batch: Batch) -> Batch:
    """The arguments of a forward: a batch without what it is to answer (`transformers.utils.find_labels`)."""
    answers = ("start_positions", "end_positions")
    return {name: tensor for name, tensor in batch.items() if "label" not in name and name not in answers}


def on_device(batch: Batch, model: PreTrainedModel) -> Batch:
    """A batch on the device of a model."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def final_hidden_state(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Runs a model up to its last hidden state (the decoder's, in an encoder-decoder), `[batch, tokens, d]`.

    A model of texts and images has none; there it is the two embeddings, `[batch, 1, d of both]`. Where a head takes
    several choices a row, each of them is a row.
    """
    inputs = inputs_of(batch)
    ids = inputs.get("input_ids")
    if ids is not None and ids.dim() == 3:  # as the stock heads for multiple choice do it
        inputs = {
            name: tensor.flatten(0, 1) if tensor.shape == ids.shape else tensor for name, tensor in inputs.items()
        }
    outputs = model.base_model(**inputs, output_hidden_states=True)
    states = getattr(outputs, "decoder_hidden_states", None) or getattr(outputs, "hidden_states", None)
    if states is not None:
        last: Tensor = states[-1]
        return last
    if getattr(outputs, "text_embeds", None) is not None:
        return torch.cat([outputs.text_embeds, outputs.image_embeds], dim=-1)[:, None]
    return logits_of(outputs)  # an own class returns what it likes, its states first


def logits_of(outputs: Any) -> Tensor:
    """The logits that a model returned: by name, or the first floats there are (own classes, tuples).

    Args:
        outputs: What its forward returned.

    Raises:
        DataError: There are none.
    """
    logits = getattr(outputs, "logits", None)
    found = (
        logits if logits is not None else next((tensor for _, tensor in float_outputs(outputs) if tensor.dim()), None)
    )
    if found is None:
        raise DataError(f"the model returned no logits, but {type(outputs).__name__}")
    return found


def float_outputs(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of floats that a model returned, by name (`""` where they have none).

    Args:
        outputs: What its forward returned: a `ModelOutput`, a mapping, a tuple, or a tensor.
    """
    if isinstance(outputs, Mapping):
        items: Iterable[tuple[str, Any]] = outputs.items()
    else:
        items = (("", item) for item in (outputs if isinstance(outputs, tuple | list) else [outputs]))
    yield from ((name, item) for name, item in items if isinstance(item, Tensor) and item.is_floating_point())


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


def router_logits(outputs: Any) -> Iterator[tuple[bool, Tensor]]:
    """Yields the router logits of each sparse layer, those of the encoder first.

    Args:
        outputs: What a mixture of experts returned with `output_router_logits=True`.

    Returns:
        Whether the layer is the decoder's, and its logits, `[batch, tokens, experts]`, of stacks `[tokens, experts]`.

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
            yield rows_of(batch, start, start + rows)


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some rows of a batch. What all rows share (positions, say) stays whole."""
    count = row_count(batch)
    return {
        name: tensor[start:stop] if tensor.dim() and len(tensor) == count else tensor for name, tensor in batch.items()
    }
