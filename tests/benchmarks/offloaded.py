"""How far a calibration layer by layer is from the plain one, in figures, time and memory.

Usage: python tests/benchmarks/offloaded.py MODEL FILE FOLDER [--rows N] [--device cpu] [--dtype float32] [--alone]
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_mlp_fusion.data import load_tokenizer, read_texts
from hf_mlp_fusion.fusion import calibrate_checkpoint, calibrate_model
from hf_mlp_fusion.modeling.loading import load_stock_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--alone", action="store_true", help="Layer by layer alone: for what does not fit.")
    given = parser.parse_args()
    lines = list(islice(read_texts(given.texts), given.rows))
    options = {"tokenizer": load_tokenizer(given.model)}
    started = time.perf_counter()
    where = {"dtype": given.dtype, "device": given.device}
    calibrate_checkpoint(given.model, given.folder / "offloaded", lines, **options, **where)
    _say("layer by layer", started, given.device)
    if given.alone:
        return
    started = time.perf_counter()
    calibrate_model(load_stock_model(given.model, **where), given.folder / "plain", lines, **options)
    _say("plain", started, given.device)
    largest = equal = every = 0.0
    for path in sorted((given.folder / "plain").glob("*.safetensors")):
        mine, theirs = load_file(given.folder / "offloaded" / path.name), load_file(path)
        for name, tensor in theirs.items():
            every += 1
            equal += torch.equal(mine[name], tensor)
            largest = max(largest, float((mine[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-30)))
    print(f"{equal:.0f} of {every:.0f} tensors are equal; the largest difference of any, relative: {largest:.2g}")


def _say(what: str, started: float, device: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU" if device != "cpu" else ""
    print(f"{what}: {time.perf_counter() - started:.0f} s, peak so far {peak:.2f} GB{gpu}")
    if gpu:
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
