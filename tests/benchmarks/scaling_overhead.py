"""What P costs at inference: a fused model against its folded twin, timed in turn.

    python tests/benchmarks/scaling_overhead.py --model ../shared/models/roberta-mini [--layers all] [--seconds 20]

Prints the median forward of both and the ratio fused / folded, for short and long batches.
"""

from __future__ import annotations

import argparse
import copy

import torch
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fold, fuse_model
from hf_mlp_fusion.measure.latency import latencies
from hf_mlp_fusion.modeling.loading import load_stock_model


def main() -> None:
    """Prints a row a batch shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    stock = load_stock_model(options.model, dtype="float32")
    fused = fuse_model(stock, FusionConfig(layers=options.layers))
    folded = copy.deepcopy(fused)
    fold(folded)
    for shape in ((1, 16), (8, 64)):
        batch = {"input_ids": torch.randint(10, 1000, shape, generator=torch.Generator().manual_seed(0))}
        before, after, plain = latencies([stock, fused, folded], batch, seconds=options.seconds)
        print(
            f"{shape[0]} x {shape[1]} tokens: stock {before.median * 1e3:.2f} ms, fused {after.median * 1e3:.2f} ms, "
            f"folded {plain.median * 1e3:.2f} ms; ratio {after.median / plain.median:.3f} ({after.runs} runs)",
            flush=True,
        )


if __name__ == "__main__":
    main()
