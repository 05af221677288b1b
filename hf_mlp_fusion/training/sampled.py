"""Tuning without texts: on what the original language model writes itself."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedModel

from ..data import sample_batches

__all__ = ["sampled_texts"]

_TOKENS = 128  # of a text, as `sample_batches` has it
_FEWEST, _USUAL, _MOST = 256, 1024, 4096  # texts
_AT_ONCE = 128  # on a GPU, which one text keeps idle


def sampled_texts(model: PreTrainedModel, tokenizer: Any, tokens: int | None, seed: int) -> list[str]:
    """Lets a language model write texts to be tuned on.

    Args:
        model: The original, a causal or masked language model.
        tokenizer: Its tokenizer.
        tokens: How many tokens all steps take; None for as many as are usual. Beyond half a million, texts serve more
            than once.
        seed: Seed of the sampling.

    Raises:
        DataError: The model writes no text.
    """
    rows = _USUAL if tokens is None else min(_MOST, max(_FEWEST, math.ceil(tokens / _TOKENS)))
    several = {"batch_size": _AT_ONCE} if model.device.type == "cuda" else {}
    batches = sample_batches(model, rows, seed=seed, **several)
    written = [tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) for batch in batches]
    return [text for texts in written for text in texts if text.strip()]
