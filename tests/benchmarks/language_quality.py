"""Perplexity of a language model after fusion and its rivals, in one shot, as a multiple of the unfused one.

Usage: python tests/benchmarks/language_quality.py MODEL CALIBRATION_TEXTS EVAL_TEXTS [--methods fusion_calibrated flap
...] [--widths 0.75 0.5 0.25] [--device cuda]. Texts are what `read_texts` takes. A method is a key of `METHODS`; with
`+auto` behind it, widths are searched for (`width="auto:0.5"`), with `+output`, fusion chooses units by the output's
error and not by the loss (`metric="output"`). All methods see the same rows. Prints a line each. With `--choices 400`
lm-evaluation-harness asks 400 multiple choices made of the texts measured on as well (`choices.py`).
"""

import argparse
import time
import warnings

import torch
from choices import accuracy

from hf_mlp_fusion import FusionConfig, FusionError, FusionWarning
from hf_mlp_fusion.baselines import METHODS, reduce_model
from hf_mlp_fusion.data import load_tokenizer, make_batches, read_texts
from hf_mlp_fusion.measure import language_loss
from hf_mlp_fusion.modeling.loading import load_stock_model

DEFAULT = ("fusion_calibrated", "fusion_auto", "flap", "wanda", "compact", "sdmprune", "nirvana", "prune", "svd")
BLOCKS = 48  # rows that are measured on


def method_name(name):
    if name.split("+")[0] not in METHODS or not set(name.split("+")[1:]) <= {"auto", "output"}:
        raise argparse.ArgumentTypeError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("evaluation")
    parser.add_argument("--methods", nargs="+", type=method_name, default=DEFAULT)
    parser.add_argument("--widths", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    parser.add_argument("--layers", default="all")
    parser.add_argument(
        "--samples", type=int, default=512, help="rows to calibrate on; a sixteenth more tell the error"
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of such a row")
    parser.add_argument("--block", type=int, default=512, help="tokens of a row to measure on")
    parser.add_argument("--choices", type=int, default=0, help="multiple choices to ask")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FusionWarning)

    tokenizer = load_tokenizer(arguments.model)
    model = load_stock_model(arguments.model, dtype="float32", device=arguments.device)
    samples = arguments.samples + arguments.samples // 16
    sizes = {"max_length": arguments.length, "batch_size": 16}
    calibration = make_batches(model, tokenizer, read_texts(arguments.calibration), samples=samples, **sizes)
    held_out = read_texts(arguments.evaluation)
    rows = make_batches(model, tokenizer, held_out, samples=BLOCKS, max_length=arguments.block, batch_size=8)

    def chosen(model):
        if not arguments.choices:
            return ""
        right, error = accuracy(model, tokenizer, held_out, arguments.choices)
        return f"{right:.1%} ± {error:.1%} right"

    unfused, parameters = language_loss(model, rows).perplexity, model.num_parameters()
    print(f"unfused: perplexity {unfused:.2f}, {parameters:,} parameters {chosen(model)}", flush=True)
    print("| method | width | perplexity, times | parameters | share | choices | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for width in arguments.widths:
        for name in arguments.methods:
            method, *how = name.split("+")
            asked = f"auto:{width}" if "auto" in how else width
            metric = "output" if "output" in how else "auto"
            config = FusionConfig(width=asked, layers=arguments.layers, metric=metric)
            started = time.perf_counter()
            try:
                small = reduce_model(model, config, method, calibration=calibration)
            except FusionError as error:
                print(f"| {name} | {width} | refused: {error} |", flush=True)
                continue
            seconds, count = time.perf_counter() - started, small.num_parameters()
            times = language_loss(small, rows).perplexity / unfused
            share = f"{count:,} | {count / parameters:.1%}"
            print(f"| {name} | {width} | {times:,.3f} | {share} | {chosen(small)} | {seconds:.1f} |", flush=True)
            del small
