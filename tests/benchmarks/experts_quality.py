"""Fewer units in every expert against fewer experts: perplexity at equal parameters, several calibrations.

    python tests/benchmarks/experts_quality.py MODEL TEXTS [--column NAME] [--shares 0.5 0.25] [--seeds 0 1 2]
        [--samples 512] [--held-out 256] [--length 128] [--device cuda] [--dtype float32] [--methods ...]
        [--multiple-of 64]

MODEL is a stock mixture of experts, such as `upcycle.py` and `small_mixture.py` make. The last `--held-out` windows of
TEXTS are what perplexity is measured on; calibration texts are drawn from the others, anew for each seed. `fusion`
clusters without data, `fusion_calibrated` is the default with data (but for its kernel match),
`reap` drops experts as the package does, `merge_experts` merges them (`fewer_experts.py`). A line a method and share:
mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from fewer_experts import merge_experts
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_mlp_fusion import FusionConfig, FusionWarning, fuse_model
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.data import Batch, make_batches, read_texts, row_count
from hf_mlp_fusion.measure import expert_load, language_loss
from hf_mlp_fusion.modeling.find import find_ffns

METHODS = ("fusion", "fusion_calibrated", "fusion_auto", "reap", "merge_experts")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--column")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--multiple-of", type=int, default=64)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FusionWarning)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = read_texts(options.texts, column=options.column)
    rows = make_batches(model, tokenizer, texts, max_length=options.length, batch_size=8)
    rows = [batch for batch in rows if batch["attention_mask"].all()]
    ends = max(1, options.held_out // 8)
    held_out, others = rows[-ends:], rows[:-ends]
    load = expert_load(model, held_out)
    busiest = statistics.mean(item.imbalance for item in load.values())
    print(f"{options.model}: {model.num_parameters():,} parameters, busiest expert {busiest:.2f} times the mean")
    print(f"perplexity {language_loss(model, held_out).perplexity:.3f} on {sum(map(row_count, held_out))} windows")
    print("share method            parameters    perplexity (mean, spread over seeds)  seconds")
    for share in options.shares:
        for method in options.methods:
            found, taken, parameters = [], 0.0, 0
            for seed in options.seeds if method != "fusion" else options.seeds[:1]:
                started = time.perf_counter()
                smaller = reduce(model, method, share, drawn(others, options.samples, seed), options.multiple_of)
                taken += time.perf_counter() - started
                parameters = smaller.num_parameters()
                found.append(language_loss(smaller, held_out).perplexity)
                del smaller
            spread = f"± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            each = ", ".join(f"{value:.3f}" for value in found)
            print(
                f"{share:<5} {method:<17} {parameters:>11,} {statistics.mean(found):>10.3f} {spread:<9} ({each}) "
                f"{taken / len(found):>8.1f}",
                flush=True,
            )


def drawn(batches: list[Batch], samples: int, seed: int) -> list[Batch]:
    """Some of the batches, by a seed."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    return [batches[index] for index in order[: max(1, samples // 8)]]


def reduce(model: PreTrainedModel, method: str, share: float, batches: list[Batch], step: int) -> Any:
    """A smaller model of a method."""
    if method == "merge_experts":
        stacked = [ffn for ffn in find_ffns(model) if ffn.spec.stacked]
        return merge_experts(model, batches, round(share * (1 + max(ffn.number for ffn in stacked))))  # type: ignore[attr-defined]
    if method == "reap":
        return reduce_model(model, FusionConfig(width=share, targets="experts", multiple_of=step), "reap", batches)
    width = f"auto:{share}" if method == "fusion_auto" else share
    calibration = None if method == "fusion" else batches
    config = FusionConfig(width=width, targets="experts", ntk="none", multiple_of=step)
    return fuse_model(model, config, calibration=calibration)


if __name__ == "__main__":
    main()
