"""About how much memory a row of tokens takes in a forward, by which batches are cut, and how much work it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..files import check_room, spare_bytes
from .running import in_pieces, row_count
from .texts import Batch

__all__ = ["LOGIT_BYTES", "fitting_pieces", "forward_work", "longest_input", "model_bytes", "row_bytes", "token_count"]

LOGIT_BYTES = 2**27
"""Bytes of a piece of logits, where they come in pieces. Their log-probabilities and gradients are as many again."""

# Activations that a forward holds at once, in those of its widest linear map; and that it keeps for a backward, in
# those of all its linear maps' outputs. Llama, GPT-2 and RoBERTa keep 0.6 to 1.7 of them.
_HELD, _KEPT = 4, 2

_RAW = 256  # numbers that make a token: a ViT's patch has 768, a frame of Wav2Vec2 320, of Whisper 160


def longest_input(batch: Batch) -> int:
    """Tokens of a batch's rows; of the longer side, in an encoder-decoder. Of images and sound, about how many."""
    sizes = [1]
    for name, tensor in batch.items():
        if name.endswith("input_ids"):
            sizes.append(tensor[0].numel())  # of all choices, where a row has several
        elif name.endswith("inputs_embeds"):
            sizes.append(tensor[0, ..., 0].numel())
        elif tensor.is_floating_point() and tensor.dim() > 1 and not name.endswith("mask"):
            sizes.append(tensor[0].numel() // _RAW)
    return max(sizes)


def token_count(batches: Iterable[Batch]) -> int:
    """Tokens of batches, padding too; of the longer side, in an encoder-decoder."""
    return sum(row_count(batch) * longest_input(batch) for batch in batches)


def forward_work(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """About how many operations a forward of batches takes; a backward through all of it takes as many again."""
    return 2.0 * model.num_parameters() * token_count(batches)


def model_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters and buffers."""
    return int(model.get_memory_footprint())


def row_bytes(model: PreTrainedModel, tokens: int, *, gradients: bool = False, logits: bool = False) -> int:
    """About how many bytes of activations a row takes beside the model.

    Args:
        model: The model.
        tokens: Tokens of the row.
        gradients: It runs a backward as well.
        logits: It makes the logits of all tokens at once.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    outputs = widest = 0
    seen: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(stack := getattr(module, "down_proj", None), nn.Parameter) and stack.dim() == 3:
            # Its chosen experts see a token each, which is copied for them: gate, up and down together.
            chosen = int(getattr(config, "num_experts_per_tok", 1) or 1) * sum(3 * size for size in stack.shape[1:])
            widest, outputs = max(widest, chosen), outputs + chosen
        if not isinstance(module, nn.Linear | Conv1D) or module is head:
            continue
        # A token passes by one expert, or a few, of many.
        alike = re.sub(r"(experts\.(expert_)?)\d+", r"\1", path)
        if alike in seen:
            continue
        seen.add(alike)
        widest = max(widest, sum(module.weight.shape))
        outputs += module.nf if isinstance(module, Conv1D) else module.out_features
    layers, hidden = int(getattr(config, "num_hidden_layers", 1)), int(getattr(config, "hidden_size", 0))
    size = _HELD * widest + layers * hidden + (_KEPT * outputs if gradients else 0)
    if model.config._attn_implementation == "eager":
        size += tokens * int(getattr(config, "num_attention_heads", 1)) * (2 * layers if gradients else 3)
    total = size * tokens * model.dtype.itemsize
    if head is not None and (logits or gradients):
        scores = 4 * tokens * len(head.weight)
        total += 3 * (scores if logits else min(scores, LOGIT_BYTES))
    return total


def fitting_pieces(
    model: PreTrainedModel, batches: Iterable[Batch], *, gradients: bool = False, logits: bool = False
) -> Iterator[Batch]:
    """Yields batches cut so that a forward of each piece fits into what the machine can spare.

    Args:
        model: The model that they are for.
        batches: Batches, of any size.
        gradients: A backward follows.
        logits: The forward makes the logits of all tokens.

    Raises:
        MemoryLimitError: Not one row fits into the memory there is.
    """
    fitting: dict[int, int] = {}
    for batch in batches:
        tokens = longest_input(batch)
        if tokens not in fitting:
            needed = row_bytes(model, tokens, gradients=gradients, logits=logits)
            check_room(needed, model.device, f"a row of {tokens} tokens", "shorter rows need less")
            fitting[tokens] = max(1, spare_bytes(model.device) // 2 // needed)
        yield from in_pieces([batch], fitting[tokens])
