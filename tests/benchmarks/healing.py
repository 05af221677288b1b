"""Fuses a language model by several recipes and heals each on its original's logits: how near does it come?

    python tests/benchmarks/healing.py ../real/smollm2-135m-instruct train.txt eval.txt --width 0.75,0.5 \
        --steps 100,400 --train ffns,body --lr 1e-4,2e-4 --device cuda

A row a run: perplexity of held-out rows as a multiple of the unfused model's, before and after, divergence on rows
held out of the training texts, and seconds of training. Each recipe is fused once, and healed from there by every
choice.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
import warnings
from dataclasses import asdict

from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.cli.options import parse_layers, parse_power, parse_width
from hf_mlp_fusion.data import load_tokenizer, make_batches, read_texts
from hf_mlp_fusion.measure import language_loss, model_size
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.training import tune_model

RECIPE = ("clustering", "selection", "refit", "ntk", "targets")


def inputs_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what `opened` takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", help="to calibrate and heal on")
    parser.add_argument("eval", help="to measure on")
    parser.add_argument("--length", type=int, default=128, help="tokens of all rows")
    parser.add_argument("--calibration", type=int, default=512, help="rows to calibrate on")
    parser.add_argument("--blocks", type=int, default=96, help="rows to measure on")
    parser.add_argument("--device", default="cpu")
    return parser


def opened(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The tokenizer, texts to heal on, the model, rows to calibrate on, and rows held out; only errors are said."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer, texts = load_tokenizer(options.model), read_texts(options.texts)
    model = load_stock_model(options.model, dtype="float32", device=options.device)
    length = {"max_length": options.length}
    held_out = make_batches(model, tokenizer, read_texts(options.eval), samples=options.blocks, **length)
    calibration = make_batches(model, tokenizer, texts, samples=options.calibration, **length)
    return tokenizer, texts, model, calibration, held_out


def main() -> None:
    """Runs what is asked for and prints a row a run."""
    parser = inputs_parser(None)
    parser.set_defaults(length=512, calibration=128, blocks=48)
    parser.add_argument("--width", default="0.5", help="separated by commas; auto:0.5 too")
    parser.add_argument("--layers", default="all")
    for name in RECIPE:
        parser.add_argument(f"--{name}", default=getattr(FusionConfig(), name))
    parser.add_argument("--power", type=parse_power, default="auto", help="of P")
    parser.add_argument("--steps", default="400", help="separated by commas, as the next five are")
    parser.add_argument("--target", default="logits")
    parser.add_argument("--train", default="ffns")
    parser.add_argument("--lr", default="2e-4")
    parser.add_argument("--batch-size", default="8")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--out", help="a file to add a JSON line a run to")
    options = parser.parse_args()
    tokenizer, texts, model, calibration, held_out = opened(options)
    unfused, size = language_loss(model, held_out).perplexity, model_size(model).parameters
    print(f"unfused: perplexity {unfused:.3f}, {size:,} parameters")
    print(
        "width      target        train      rate   rows steps seed  share  fused  healed  divergence        seconds"
    )
    for width in options.width.split(","):
        recipe = {name: getattr(options, name) for name in (*RECIPE, "power")}
        config = FusionConfig(width=parse_width(width), layers=parse_layers(options.layers), **recipe)
        started = time.perf_counter()
        fused = fuse_model(model, config, calibration=calibration, tokenizer=tokenizer)
        share = model_size(fused).parameters / size
        before = language_loss(fused, held_out).perplexity / unfused
        print(f"{width:10s} fused in {time.perf_counter() - started:.0f} s, {share:.3f} {before:.3f}", flush=True)
        choices = (
            getattr(options, name).split(",") for name in ("target", "train", "lr", "batch_size", "steps", "seed")
        )
        for target, train, rate, rows, steps, seed in itertools.product(*choices):
            healed = copy.deepcopy(fused)
            arguments = {"batch_size": int(rows), "steps": int(steps), "seed": int(seed)}
            arguments |= {"max_length": options.length}
            tune_model(
                healed, model, texts, tokenizer, target=target, train=train, learning_rate=float(rate), **arguments
            )
            after = language_loss(healed, held_out).perplexity / unfused
            (done,) = healed.fusion_report.tuning
            apart = f"{done.divergence_before or 0:.4f} -> {done.divergence_after or 0:.4f}"
            print(
                f"{width:10s} {target:13s} {train:10s} {rate:6s} {rows:>4s} {steps:>5s} {seed:>4s}  {share:.3f} "
                f"{before:6.3f} {after:6.3f}   {apart} {done.seconds:7.0f}",
                flush=True,
            )
            if options.out:
                line = {"model": options.model, "recipe": config.to_dict(), "unfused": unfused, "share": share}
                line |= {"before": before, "after": after, "tuning": asdict(done)}
                with open(options.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
