"""Peak memory and time of calibration and measures, over rows, length, vocabulary and width.

    python tests/benchmarks/memory.py CASE [CASE ...] [--device cuda] [--threads 2]

A case is words joined by commas, all of them optional: `model=FOLDER` (else one of random weights, Llama's shape),
`vocab=32000`, `hidden=640`, `ffn=2048`, `layers=18`, `rows=64`, `tokens=512`, `batch=8`, `width=0.75`, and
`do=fuse`: `fuse`, `fuse_unmatched`, `ntk` (the kernels that a match needs, once), `output_error`, `language_loss`,
`compare` (fusion and its measures) or `tune` (20 steps). Each runs in a process of its own. The peak is that of the
process on a CPU (libraries, 0.5 GB, and the model are in it), and of torch's allocator on a GPU. Without a case, the
grid of docs/memory.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.measure import language_loss, ntk, output_error, parameter_blocks, reduced_ffns

SIZES = {"vocab": 32000, "hidden": 640, "ffn": 2048, "layers": 18, "rows": 64, "tokens": 512, "batch": 8}
GRID = [
    "do=fuse_unmatched",
    "do=fuse",
    "do=fuse,batch=64",
    "do=fuse,rows=256,tokens=128",
    "do=fuse,rows=16,tokens=2048",
    "do=fuse,vocab=262144",
    "do=fuse,ffn=8192,layers=4",
    "do=output_error",
    "do=language_loss,batch=64",
    "do=language_loss,batch=64,vocab=262144",
    "do=ntk,rows=32,tokens=512,batch=32",
    "do=tune,tokens=128,batch=16",
    "do=tune,tokens=128,batch=16,vocab=262144",
]


def run(case: dict[str, str], device: str) -> None:
    """Runs one case in this process, and prints its row."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = SIZES | {name: int(value) for name, value in case.items() if name in SIZES}
    if "model" in case:
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
    else:
        config = LlamaConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["ffn"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["hidden"] // 64,
            num_key_value_heads=sizes["hidden"] // 64,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval().to(device)
    ids = torch.randint(5, model.config.vocab_size, (sizes["rows"], sizes["tokens"]))
    batches = [{"input_ids": rows, "labels": rows} for rows in ids.split(sizes["batch"])]
    recipe = FusionConfig(width=float(case.get("width", "0.75")), ntk="none")
    what = case.get("do", "fuse")
    small = None
    if what in ("output_error", "tune"):
        small = fuse_model(model, recipe)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started, worked = time.perf_counter(), time.process_time()
    if what == "fuse":
        fuse_model(model, FusionConfig(width=recipe.width), calibration=batches)
    elif what == "fuse_unmatched":
        fuse_model(model, recipe, calibration=batches)
    elif what == "ntk":
        ntk(model, batches)
    elif what == "output_error":
        output_error(model, small, batches)
    elif what == "language_loss":
        language_loss(model, batches)
    elif what == "compare":
        fused = fuse_model(model, FusionConfig(width=recipe.width), calibration=batches)
        output_error(model, fused, batches)
        ntk(fused, batches[:1], parameters=parameter_blocks(fused, reduced_ffns(fused)))
        language_loss(fused, batches)
    elif what == "tune":
        tune(small, model, ids, sizes["batch"])
    else:
        raise SystemExit(f"do={what} is not known")
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    name = Path(case["model"]).name if "model" in case else "random"
    shape = f"{sizes['vocab']:,}, {sizes['layers']} × {sizes['hidden']}/{sizes['ffn']}" if name == "random" else ""
    print(
        f"| {what} | {name} {shape} | {sizes['rows']} × {sizes['tokens']} | {sizes['batch']} | {peak:.1f} "
        f"| {seconds:.0f} | {work:.0f} |",
        flush=True,
    )


def tune(fused, model, ids, batch) -> None:
    """Twenty steps of layer-wise tuning, cut as `tune_model` cuts them."""
    from transformers import TrainingArguments

    from hf_mlp_fusion.training import LayerwiseTuningTrainer
    from hf_mlp_fusion.training.tune import _rows_at_once

    rows = _rows_at_once(fused, model, batch, ids.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=20,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batch // rows,
            use_cpu=fused.device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = [{"input_ids": row} for row in ids]
        LayerwiseTuningTrainer(fused, arguments, teacher=model, train_dataset=data).train()


def main() -> None:
    """Prints a row a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.here:
        run(dict(word.split("=", 1) for word in options.cases[0].split(",")), options.device)
        return
    print("| what | model: vocabulary, layers × sizes | rows × tokens | batch | peak, GB | seconds | of CPU |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for case in options.cases or GRID:
        words = [sys.executable, __file__, case, "--here", "--device", options.device]
        done = subprocess.run(
            [*words, "--threads", str(options.threads)], env=os.environ, capture_output=True, text=True
        )
        print(done.stdout.strip() or f"| {case}: {done.stderr.strip().splitlines()[-1]} |", flush=True)


if __name__ == "__main__":
    main()
