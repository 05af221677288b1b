"""Texts and batches: read, cut into rows, written by a model itself, and run through one.

May import `files` and `errors`.
"""

from .budget import available_bytes, check_room, readable_bytes, spare_bytes
from .objectives import LANGUAGE_OBJECTIVES, longest_row, make_batches, objective_of
from .running import (
    evaluating,
    final_hidden_state,
    in_pieces,
    inputs_of,
    on_device,
    router_logits,
    single_rows,
    token_mask,
    unpadded,
)
from .sampling import sample_batches
from .texts import Batch, load_tokenizer, pad_batch, read_texts, split_texts, text_column

__all__ = [
    "LANGUAGE_OBJECTIVES",
    "Batch",
    "available_bytes",
    "check_room",
    "evaluating",
    "final_hidden_state",
    "in_pieces",
    "inputs_of",
    "load_tokenizer",
    "longest_row",
    "make_batches",
    "objective_of",
    "on_device",
    "pad_batch",
    "read_texts",
    "readable_bytes",
    "router_logits",
    "sample_batches",
    "single_rows",
    "spare_bytes",
    "split_texts",
    "text_column",
    "token_mask",
    "unpadded",
]
