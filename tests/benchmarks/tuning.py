"""Tunes a fused model layer by layer, by each target and learning rate: which brings it nearest to the original?

    python tests/benchmarks/tuning.py ../shared/models/roberta-mini ../shared/data/sst2/train.parquet --classifier

A row a run: mean output error of the fused FFNs on the original's inputs, error of the last hidden state, and the loss
of a language model, each before and after one epoch in steps of 16 rows, on texts that are neither tuned nor
calibrated on.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import warnings

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.objectives import LANGUAGE_OBJECTIVES, make_batches, objective_of
from hf_mlp_fusion.data.texts import load_tokenizer, read_texts, split_texts
from hf_mlp_fusion.measure import language_loss
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.training import TARGETS, tune_model

CALIBRATION, ROWS, LENGTH = 512, 16, 64


def main() -> None:
    """Runs what is asked for and prints a row a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--classifier", action="store_true", help="with a new classification head: a row a text")
    parser.add_argument("--starts", default="plain,calibrated")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3")
    parser.add_argument("--layers", default="last:8")
    parser.add_argument("--count", type=int, default=1778, help="texts: 100 steps, if each is a row")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer, texts = load_tokenizer(options.model), read_texts(options.texts)
    torch.manual_seed(0)
    if options.classifier:
        model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32)
    else:
        model = load_stock_model(options.model, dtype="float32")
    calibration, texts = texts[:CALIBRATION], texts[CALIBRATION:]
    held_out = make_batches(model, tokenizer, split_texts(texts)[1], samples=128, max_length=LENGTH)
    print("start       target         rate   FFNs              last hidden       loss              steps seconds")
    for start in options.starts.split(","):
        config = FusionConfig(layers=options.layers)
        given = calibration if start == "calibrated" else None
        fused = fuse_model(model, config, calibration=given, tokenizer=tokenizer)
        for target, rate in itertools.product(options.targets.split(","), options.rates.split(",")):
            tuned, started = copy.deepcopy(fused), time.perf_counter()
            arguments = {"learning_rate": float(rate), "batch_size": ROWS, "max_length": LENGTH}
            result = tune_model(tuned, model, texts[: options.count], tokenizer, target=target, **arguments)
            seconds = time.perf_counter() - started
            loss = "                "
            if objective_of(model) in LANGUAGE_OBJECTIVES:
                loss = " -> ".join(f"{language_loss(item, held_out).loss:6.3f}" for item in (fused, tuned))
            before, after = result.before, result.after
            print(
                f"{start:11s} {target:14s} {rate:6s} {before.mean:.3f} -> {after.mean:.3f}    "
                f"{before.hidden_state:.3f} -> {after.hidden_state:.3f}    {loss}  "
                f"{tuned.fusion_report.tuning[0].steps:5d} {seconds:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
