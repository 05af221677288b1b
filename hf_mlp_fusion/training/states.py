"""What layer-wise tuning compares: the hidden states of a model's layers, or the outputs of its FFNs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import Batch, evaluating, few_logits, token_mask
from ..measure import reduced_ffns
from ..modeling.find import find_ffns
from .teacher import seen_by

__all__ = ["LayerwiseLoss", "State", "ffn_outputs", "hidden_states", "mean_squared_error"]


@dataclass(frozen=True)
class State:
    """What one layer computed.

    Args:
        tensor: `[..., d]`, its tokens in the order of the batch.
        decoder: Whether the tokens are those of an encoder-decoder's decoder.
    """

    tensor: Tensor
    decoder: bool


def hidden_states(run: Callable[..., Any], model: PreTrainedModel, names: Sequence[str], batch: Batch) -> list[State]:
    """Runs a model for the outputs of its layers, as the model returns them (the last one may be normed).

    Args:
        run: The model, or what wraps it.
        model: The model itself.
        names: Names of the fused FFNs; not needed here.
        batch: The arguments of its forward.
    """
    with few_logits(model):  # none of them is compared
        outputs = run(**batch, output_hidden_states=True, return_dict=True, use_cache=False)
    encoder = getattr(outputs, "encoder_hidden_states", None) or outputs.hidden_states
    decoder = getattr(outputs, "decoder_hidden_states", None) or ()
    # The first of each are the embeddings.
    return [State(tensor, False) for tensor in encoder[1:]] + [State(tensor, True) for tensor in decoder[1:]]


def ffn_outputs(run: Callable[..., Any], model: PreTrainedModel, names: Sequence[str], batch: Batch) -> list[State]:
    """Runs a model for the outputs of its FFNs: before dropout, residual and norm.

    The experts of a mixture give one output together, weighted and put back in the tokens' order.

    Args:
        run: The model, or what wraps it.
        model: The model itself.
        names: Names of the fused FFNs.
        batch: The arguments of its forward.
    """
    blocks: dict[nn.Module, bool] = {}
    for ffn in find_ffns(model):
        if ffn.name in names:
            block = ffn.exit if ffn.expert is None else model.get_submodule(ffn.block)
            blocks[block] = ffn.stack == "decoder"
    found: dict[nn.Module, Tensor] = {}

    def keep(block: nn.Module, _: Any, output: Any) -> None:
        found[block] = output[0] if isinstance(output, tuple) else output  # some give the router's scores besides

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with few_logits(model):
            run(**batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [State(found[block], decoder) for block, decoder in blocks.items()]


class LayerwiseLoss:
    """The mean over layers of the mean squared error between what a fused model computes and what its teacher does.

    Args:
        states: What is compared: `hidden_states` or `ffn_outputs`.
        fused: The fused model.
        teacher: The original.
    """

    def __init__(
        self,
        states: Callable[[Callable[..., Any], PreTrainedModel, Sequence[str], Batch], list[State]],
        fused: PreTrainedModel,
        teacher: PreTrainedModel,
    ) -> None:
        self.states, self.fused, self.teacher = states, fused, teacher
        self.names = reduced_ffns(fused)

    def __call__(self, run: Callable[..., Any], batch: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            run: The fused model, or what wraps it.
            batch: The arguments of its forward.
        """
        with evaluating(self.teacher):
            wanted = self.states(self.teacher, self.teacher, self.names, seen_by(self.teacher, batch))
        return mean_squared_error(self.states(run, self.fused, self.names, batch), wanted, batch)


def mean_squared_error(found: Sequence[State], wanted: Sequence[State], batch: Batch) -> Tensor:
    """The mean over layers of the mean squared error over tokens and dimensions. Padding does not count.

    Args:
        found: What the layers of a model computed.
        wanted: What they should have, layer by layer; anywhere.
        batch: The batch, which tells padding.

    Returns:
        A scalar on the device of `found`, float32 at least.
    """
    errors = []
    for state, goal in zip(found, wanted, strict=True):
        tensor = state.tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)
        difference = (tensor.to(wide) - goal.tensor.to(tensor.device, wide)).flatten(0, -2)
        mask = token_mask(batch, decoder=state.decoder)
        errors.append((difference if mask is None else difference[mask.flatten()]).square().mean())
    return torch.stack(errors).mean()
