"""What a fused folder loses before any fine-tuning, on texts that it was not calibrated on, as lines for its card.

    python tests/benchmarks/measure_fused.py FUSED ORIGINAL TEXTS --dataset NAME --split NAME >> lines.jsonl

A line a figure: the loss of the language model, that of the original, and the mean output error of the fused FFNs.
`hf-mlp-fusion card FUSED --results lines.jsonl` shows them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.data.texts import load_tokenizer, read_texts
from hf_mlp_fusion.families.compat import pipeline_tag
from hf_mlp_fusion.hub import Measured
from hf_mlp_fusion.measure import language_loss, output_error
from hf_mlp_fusion.modeling import fused_class
from hf_mlp_fusion.modeling.loading import load_stock_model


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fused")
    parser.add_argument("original")
    parser.add_argument("texts")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--samples", type=int, default=256)
    options = parser.parse_args()
    command = shlex.join(["python", Path(sys.argv[0]).as_posix(), *sys.argv[1:]])
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    original = load_stock_model(options.original, dtype="float32").eval()
    fused = fused_class(type(original)).from_pretrained(options.fused, dtype=torch.float32).eval()
    texts = read_texts(options.texts)
    batches = make_batches(original, load_tokenizer(options.original), texts, samples=options.samples)
    figures = {
        "loss": language_loss(fused, batches).loss,
        "loss of the original": language_loss(original, batches).loss,
        "output error of the fused FFNs, mean": output_error(original, fused, batches).mean,
    }
    task = pipeline_tag(type(original).__name__) or "other"
    for metric, value in figures.items():
        measured = Measured(task, options.dataset, options.split, metric, round(value, 4), command=command)
        print(json.dumps({name: value for name, value in asdict(measured).items() if value is not None}))


if __name__ == "__main__":
    main()
