"""First-order saliencies: the gradients of an FFN's weights, unit by unit beside the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import (
    Batch,
    Progress,
    check_room,
    evaluating,
    in_pieces,
    longest_input,
    on_device,
    row_bytes,
    run_on,
    spare_bytes,
    unpadded,
)
from ..measure.gradients import only_these_train
from ..modeling.ffn import FFN
from ..tensors import FFNWeights

__all__ = ["backward_each", "gradients_of"]

_TOKENS = 1024  # of an example: SDMPrune's sequences


def backward_each(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    scalar: Callable[[Batch], Tensor],
    done: Callable[[], None] = lambda: None,
) -> None:
    """Runs the backward of a scalar of each example, in which the weights of the FFNs alone have gradients.

    Args:
        model: The model.
        ffns: The FFNs.
        batches: The data; an example is as many rows without padding as make 1,024 tokens, one at least.
        scalar: Takes an example on the model's device.
        done: Called after each backward, with the gradients there: `gradients_of`. They add up unless it drops them.

    Raises:
        MemoryLimitError: Not one row fits into memory with its gradients.
    """
    examples = [example for batch in unpadded(batches) for example in in_pieces([batch], _rows(model, batch))]
    names = list(dict.fromkeys(name for ffn in ffns for name in ffn.parameter_names()))
    model.zero_grad(set_to_none=True)
    with evaluating(model), only_these_train(model, names), Progress(len(examples), "saliencies") as progress:
        for number, example in enumerate(examples, 1):
            with torch.enable_grad(), run_on(f"example {number} of the calibration batches"):
                output = scalar(on_device(example, model))
                if output.requires_grad:  # not where experts see no token of it
                    output.backward()
            done()
            progress.update()


def _rows(model: PreTrainedModel, batch: Batch) -> int:
    tokens = longest_input(batch)
    needed = row_bytes(model, tokens, gradients=True, logits=True)
    check_room(needed, model.device, f"the gradients by a row of {tokens} tokens", "shorter rows need less")
    return max(1, min(_TOKENS // tokens, spare_bytes(model.device) // 2 // needed))


def gradients_of(ffn: FFN) -> FFNWeights:
    """The gradients of an FFN's weights, as `FFN.read` gives the weights; zero where none arrived.

    Args:
        ffn: The FFN.
    """
    with _gradients_instead(ffn.host):
        return ffn.read()


@contextlib.contextmanager
def _gradients_instead(module: nn.Module) -> Iterator[None]:
    """Puts gradients where the weights are, so that what knows how a model keeps weights reads them."""
    weights = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in weights:
            gradient = parameter.grad
            parameter.data = torch.zeros_like(data) if gradient is None else gradient
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
