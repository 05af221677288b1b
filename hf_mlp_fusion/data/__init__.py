"""Texts and batches: read, cut into rows, written by a model itself, and run through one.

May import `modeling`, `hub`, `files` and `errors`.
"""

from .carried import save_carrying
from .hub_datasets import load_hub_dataset
from .objectives import LANGUAGE_OBJECTIVES, longest_row, make_batches, objective_of
from .running import (
    counted_tokens,
    cut_padding,
    evaluating,
    final_hidden_state,
    inputs_of,
    on_device,
    router_logits,
    row_count,
    token_mask,
    unpadded,
)
from .sampling import sample_batches
from .texts import Batch, load_tokenizer, pad_batch, read_texts, split_texts, text_column, tokenizer_of

__all__ = [
    "LANGUAGE_OBJECTIVES",
    "Batch",
    "counted_tokens",
    "cut_padding",
    "evaluating",
    "final_hidden_state",
    "inputs_of",
    "load_hub_dataset",
    "load_tokenizer",
    "longest_row",
    "make_batches",
    "objective_of",
    "on_device",
    "pad_batch",
    "read_texts",
    "router_logits",
    "row_count",
    "sample_batches",
    "save_carrying",
    "split_texts",
    "text_column",
    "token_mask",
    "tokenizer_of",
    "unpadded",
]
