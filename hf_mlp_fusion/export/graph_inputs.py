"""What the graph of a model takes: made-up inputs to trace and to check it with, and which of their axes may vary."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError

__all__ = ["free_axes", "graph_inputs"]

_FREE_AXES = {
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("batch", "sequence")),
    "decoder_input_ids": ("batch", "decoder_sequence"),
    "pixel_values": ("batch",),
    "input_features": ("batch",),
    "input_values": ("batch", "samples"),
}


def free_axes(name: str) -> tuple[str, ...]:
    """The first axes of an input, by name; the others are as long as the config says.

    Args:
        name: The input, one of `graph_inputs`.
    """
    return _FREE_AXES[name]


def graph_inputs(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Inputs of one kind, the model's main one, and what belongs to it; the same at every call.

    Of text, tokens, the last two of the last row masked as padding is, and the decoder's, where there is one. Of
    images, noise; of sound, noise as long as the config wants it, or 400 samples a unit of `length`.

    Args:
        model: The model.
        batch: Rows.
        length: Tokens a row.

    Raises:
        UnsupportedModelError: It takes texts and images at once, or its main input is of another kind.
    """
    generator = torch.Generator().manual_seed(length)
    config, main = model.config, model.main_input_name
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {}
    if {"input_ids", "pixel_values"} <= accepted.keys():
        raise UnsupportedModelError(
            f"{type(model).__name__} takes texts and images at once, an ONNX graph one of them"
        )
    if main == "input_ids":
        ids = _tokens(config, batch, length, generator)
        mask = torch.ones_like(ids)
        mask[-1, -2:] = 0
        inputs |= {"input_ids": ids, "attention_mask": mask}
        if getattr(config, "type_vocab_size", 1) > 1:
            inputs["token_type_ids"] = torch.zeros_like(ids)
            inputs["token_type_ids"][:, length // 2 :] = 1
    elif main == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        inputs[main] = torch.randn(batch, config.num_channels, height, width, generator=generator)
    elif main == "input_features":
        inputs[main] = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    elif main == "input_values":
        inputs[main] = torch.randn(batch, 400 * length, generator=generator)
    else:
        raise UnsupportedModelError(f"{type(model).__name__} takes {main}, of which no graph is made")
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _tokens(config, batch, length + 1, generator)
    return {name: tensor for name, tensor in inputs.items() if name in accepted}


def _tokens(config: Any, batch: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(config.get_text_config().vocab_size, (batch, length), generator=generator)
