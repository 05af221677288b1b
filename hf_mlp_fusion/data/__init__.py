"""Texts and batches: read, cut into rows, written by a model itself, and run through one.

May import `modeling`, `hub`, `files` and `errors`.
"""

from ..files import available_bytes, check_room, readable_bytes, spare_bytes
from .carried import save_carrying
from .context import plain_context, run_on
from .footprint import (
    LOGIT_BYTES,
    fitting_pieces,
    forward_work,
    longest_input,
    model_bytes,
    row_bytes,
    token_count,
)
from .given import as_batches, given_items, with_decoder_inputs
from .hub_datasets import load_hub_dataset
from .objectives import LANGUAGE_OBJECTIVES, longest_row, make_batches, objective_of
from .padding import counted_tokens, cut_padding, first_tokens, single_rows, token_mask, unpadded
from .processes import Processes
from .progress import Progress, progress_over
from .running import (
    evaluating,
    few_logits,
    final_hidden_state,
    float_outputs,
    in_pieces,
    inputs_of,
    logits_of,
    on_device,
    router_logits,
    row_count,
    rows_of,
)
from .sampling import sample_batches
from .texts import (
    Batch,
    load_tokenizer,
    pad_batch,
    padded_batches,
    read_texts,
    split_texts,
    text_column,
    token_rows,
    tokenizer_of,
)

__all__ = [
    "LANGUAGE_OBJECTIVES",
    "LOGIT_BYTES",
    "Batch",
    "Processes",
    "Progress",
    "as_batches",
    "available_bytes",
    "check_room",
    "counted_tokens",
    "cut_padding",
    "evaluating",
    "few_logits",
    "final_hidden_state",
    "first_tokens",
    "fitting_pieces",
    "float_outputs",
    "forward_work",
    "given_items",
    "in_pieces",
    "inputs_of",
    "load_hub_dataset",
    "load_tokenizer",
    "logits_of",
    "longest_input",
    "longest_row",
    "make_batches",
    "model_bytes",
    "objective_of",
    "on_device",
    "pad_batch",
    "padded_batches",
    "plain_context",
    "progress_over",
    "read_texts",
    "readable_bytes",
    "router_logits",
    "row_bytes",
    "row_count",
    "rows_of",
    "run_on",
    "sample_batches",
    "save_carrying",
    "single_rows",
    "spare_bytes",
    "split_texts",
    "text_column",
    "token_count",
    "token_mask",
    "token_rows",
    "tokenizer_of",
    "unpadded",
    "with_decoder_inputs",
]
