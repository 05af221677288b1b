"""Perplexity of a language model after fusion and its rivals, in one shot, as a multiple of the unfused one.

Usage: python tests/benchmarks/language_quality.py MODEL CALIBRATION_TEXTS EVAL_TEXTS [--methods fusion_calibrated flap
...] [--widths 0.75 0.5 0.25] [--device cuda]. Texts are what `read_texts` takes. A method is a key of `METHODS`; with
`+auto` behind it, widths are searched for (`width="auto:0.5"`). All methods see the same rows. Prints a line each.
"""

import argparse
import time
import warnings

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mlp_fusion import FusionConfig, FusionError, FusionWarning
from hf_mlp_fusion.baselines import METHODS, reduce_model
from hf_mlp_fusion.data import make_batches, read_texts
from hf_mlp_fusion.measure import language_loss

DEFAULT = ("fusion_calibrated", "fusion_auto", "flap", "wanda", "compact", "sdmprune", "nirvana", "prune", "svd")
BLOCKS, BLOCK = 48, 512  # that are measured on, and their tokens


def method_name(name):
    if name.removesuffix("+auto") not in METHODS:
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FusionWarning)

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device).eval()
    samples = arguments.samples + arguments.samples // 16
    sizes = {"max_length": arguments.length, "batch_size": 16}
    calibration = make_batches(model, tokenizer, read_texts(arguments.calibration), samples=samples, **sizes)
    held_out = read_texts(arguments.evaluation)
    rows = make_batches(model, tokenizer, held_out, samples=BLOCKS, max_length=BLOCK, batch_size=8)
    unfused, parameters = language_loss(model, rows).perplexity, model.num_parameters()
    print(f"unfused: perplexity {unfused:.2f}, {parameters:,} parameters", flush=True)
    print("| method | width | perplexity, times | parameters | share | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for width in arguments.widths:
        for name in arguments.methods:
            asked = f"auto:{width}" if name.endswith("+auto") else width
            config = FusionConfig(width=asked, layers=arguments.layers)
            started = time.perf_counter()
            try:
                small = reduce_model(model, config, name.removesuffix("+auto"), calibration=calibration)
            except FusionError as error:
                print(f"| {name} | {width} | refused: {error} |", flush=True)
                continue
            seconds, count = time.perf_counter() - started, small.num_parameters()
            times = language_loss(small, rows).perplexity / unfused
            share = f"{count:,} | {count / parameters:.1%}"
            print(f"| {name} | {width} | {times:,.3f} | {share} | {seconds:.1f} |", flush=True)
            del small
