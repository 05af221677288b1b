"""Calibrating all layers in one pass on the original's inputs, against layer after layer on the fused model's.

    python tests/benchmarks/calibration_passes.py --model ../shared/models/gpt2-mini --texts mrpc.txt [--seeds 3]

The texts are split in halves by a hash of each: one calibrates (another draw of 256 windows a seed), the other is
measured on. Prints the loss, the mean output error and the seconds of both ways.
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.data.texts import read_texts, split_texts
from hf_mlp_fusion.fusion import layer_fuser
from hf_mlp_fusion.measure import language_loss, output_error


def main() -> None:
    """Prints a row a way and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--layers", default="last:8")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    calibration, held = split_texts(read_texts(options.texts), 0.5)
    batches = make_batches(model, tokenizer, held, samples=256, batch_size=16)
    print(f"unfused: loss {language_loss(model, batches).loss:.4f} ({device})")
    usual = layer_fuser._MOMENT_BYTES
    for seed in range(options.seeds):
        texts = random.Random(seed).sample(calibration, len(calibration))
        rows = make_batches(model, tokenizer, texts, samples=256, batch_size=16)
        for way, room in (("one pass", usual), ("layer after layer", 1)):
            layer_fuser._MOMENT_BYTES = room
            started = time.perf_counter()
            fused = fuse_model(model, FusionConfig(layers=options.layers, ntk="none"), calibration=rows)
            seconds = time.perf_counter() - started
            loss, error = language_loss(fused, batches).loss, output_error(model, fused, batches[:4]).mean
            print(f"seed {seed}, {way}: loss {loss:.4f}, output error {error:.4f}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
