"""What a fused folder loses before any fine-tuning, on texts that it was not calibrated on, as lines for its card.

    python tests/benchmarks/measure_fused.py FUSED ORIGINAL TEXTS --dataset NAME --split NAME >> lines.jsonl

A line a figure: the mean output error of the fused FFNs, and of language models the loss and that of the original.
With `--train TRAINING`, more texts, also how the model trains: how far 16 steps of AdamW at 2e-5 move W1's and W2's
part of a fused FFN, as multiples of what they do to the original, and how far the loss curves lie apart. A model
without a language head gets a new one for the file's `label`, the same for both. `hf-mlp-fusion card FUSED --results
lines.jsonl` shows the lines.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pandas
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion.data.objectives import LANGUAGE_OBJECTIVES, make_batches, objective_of
from hf_mlp_fusion.data.texts import load_tokenizer, read_texts
from hf_mlp_fusion.families.compat import pipeline_tag
from hf_mlp_fusion.hub import Measured
from hf_mlp_fusion.measure import dynamics, language_loss, output_error
from hf_mlp_fusion.modeling.classes import fused_class
from hf_mlp_fusion.modeling.loading import load_stock_model

STEPS, ROWS, LENGTH = 16, 8, 64


def how_it_trains(original: PreTrainedModel, fused: PreTrainedModel, options: argparse.Namespace) -> dict[str, float]:
    """The figures of the dynamics, on the first rows of the file of training texts."""
    tokenizer = load_tokenizer(options.original)
    sizes = {"batch_size": ROWS, "max_length": LENGTH}
    rows = (STEPS + 1) * ROWS
    if objective_of(original) in LANGUAGE_OBJECTIVES:
        batches = make_batches(original, tokenizer, read_texts(options.train), samples=rows, **sizes)
    else:
        original, fused = with_new_heads(options.original, options.fused)
        labelled = zip(read_texts(options.train), pandas.read_parquet(options.train)["label"], strict=True)
        texts, numbers = zip(*list(labelled)[:rows], strict=True)
        batches, labels = make_batches(original, tokenizer, texts, **sizes), torch.tensor(numbers)
        batches = [{**batch, "labels": part} for batch, part in zip(batches, labels.split(ROWS), strict=True)]
    found = dynamics(original, fused, batches)
    return {
        "how far W1 moves in training, times the original's": found.inner,
        "how far W2 moves in training, times the original's": found.outer,
        "loss curves of training, mean distance": found.loss_gap,
    }


def with_new_heads(original: str, fused: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Both models with the same new classification head."""
    torch.manual_seed(0)
    before = AutoModelForSequenceClassification.from_pretrained(original, num_labels=2, dtype=torch.float32)
    after = fused_class(type(before)).from_pretrained(fused, num_labels=2, dtype=torch.float32)
    after.classifier.load_state_dict(before.classifier.state_dict())
    return before.eval(), after.eval()


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fused")
    parser.add_argument("original")
    parser.add_argument("texts")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--train", type=Path)
    options = parser.parse_args()
    command = shlex.join(["python", Path(sys.argv[0]).as_posix(), *sys.argv[1:]])
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    original = load_stock_model(options.original, dtype="float32").eval()
    fused = fused_class(type(original)).from_pretrained(options.fused, dtype=torch.float32).eval()
    texts = read_texts(options.texts)
    batches = make_batches(original, load_tokenizer(options.original), texts, samples=options.samples)
    figures = {"output error of the fused FFNs, mean": output_error(original, fused, batches).mean}
    if objective_of(original) in LANGUAGE_OBJECTIVES:
        figures["loss"] = language_loss(fused, batches).loss
        figures["loss of the original"] = language_loss(original, batches).loss
    if options.train:
        figures |= how_it_trains(original, fused, options)
    task = pipeline_tag(type(original).__name__) or "feature-extraction"
    for metric, value in figures.items():
        measured = Measured(task, options.dataset, options.split, metric, round(value, 4), command=command)
        print(json.dumps({name: value for name, value in asdict(measured).items() if value is not None}))


if __name__ == "__main__":
    main()
