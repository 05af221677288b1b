"""Calibration without data: token sequences that a language model writes itself."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import DataError
from .footprint import fitting_pieces
from .objectives import longest_row, objective_of
from .progress import Progress
from .running import evaluating, logits_of
from .texts import Batch

__all__ = ["sample_batches"]

_LENGTH = 128
_ROUNDS = 3  # of filling masks; more bring text that is too much of the same
_BATCH = 16


def sample_batches(model: PreTrainedModel, rows: int = 128, *, seed: int = 0, batch_size: int = _BATCH) -> list[Batch]:
    """Lets a language model write what it is then calibrated on.

    A causal model writes on from its first token, at temperature 1. A masked model fills rows of masks in three
    rounds, a third of them a round. Random tokens in their place are clearly worse.

    Args:
        model: A causal or masked language model.
        rows: Sequences of 128 tokens (or the longest that the model takes).
        seed: Seed of the sampling. The state of torch's own generator is left as it was.
        batch_size: Sequences that are written at once.

    Returns:
        Batches of `input_ids` and `attention_mask`, `[batch_size, tokens]`.

    Raises:
        DataError: The model writes no text: it is no causal or masked language model, or lacks the tokens for it.
    """
    objective = objective_of(model)
    if objective not in ("causal", "masked"):
        raise DataError(
            f"{type(model).__name__} writes no text to be calibrated on (causal and masked language models with their "
            "head do): give texts"
        )
    length = longest_row(model, _LENGTH)
    batches: list[Batch] = []
    progress = Progress(rows, "sampling", shorter="texts of your own need no sampling")
    with progress, evaluating(model), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, rows, batch_size):
            count = min(batch_size, rows - start)
            ids = (_continue if objective == "causal" else _fill)(model, count, length)
            batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            progress.update(count)
    return batches


def _continue(model: PreTrainedModel, count: int, length: int) -> Tensor:
    start = model.config.bos_token_id
    if start is None:
        start = model.config.eos_token_id
    if start is None:
        raise DataError("the model's config names no token to start a text with: give texts")
    first = torch.full((count, 1), int(start), device=model.device)
    ids: Tensor = model.generate(  # type: ignore[operator]
        first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        min_new_tokens=length - 1,
        max_new_tokens=length - 1,
        pad_token_id=int(start),
    )
    return ids


def _fill(model: PreTrainedModel, count: int, length: int) -> Tensor:
    mask = getattr(model.config, "mask_token_id", None)
    if mask is None:
        from .texts import tokenizer_of

        mask = tokenizer_of(model).mask_token_id if model.config.name_or_path else None
    if mask is None:
        raise DataError("the model's mask token is not known: give texts")
    others = (getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    special = [int(mask), *(int(token) for token in others if token is not None)]
    ids = torch.full((count, length), int(mask), device=model.device)
    for left in range(_ROUNDS, 0, -1):
        masked = ids == mask
        pieces = fitting_pieces(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], logits=True)
        drawn = torch.cat([_draw(logits_of(model(**piece)).float(), special) for piece in pieces])
        filled = masked & (torch.rand(ids.shape, device=ids.device) < 1 / left)
        ids = torch.where(filled, drawn, ids)
    return ids


def _draw(logits: Tensor, never: list[int]) -> Tensor:
    """Draws a token for each place, `[batch, tokens]`."""
    logits[..., never] = -torch.inf
    return torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(logits.shape[:-1])
