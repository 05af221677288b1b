"""What a step of fine-tuning takes on a GPU, with and without the time that Python needs to start its kernels.

    python tests/benchmarks/step_on_gpu.py CONFIG_FOLDER {eager,reduce-overhead,captured}
        [--dropout] [--batch-size 32] [--bf16-weights] [--profile]

`captured` compiles each layer, captures the whole step (forward, backward, AdamW) in one CUDA graph and times its
replays: what is left is the GPU's own time. RoBERTa only; 8 of 12 layers at a quarter, 128 tokens, bf16
by autocast or in the weights too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.bench.cost import random_batch, random_forms, random_model
from hf_mlp_fusion.measure.latency import in_turn


def main() -> None:
    """Prints a row a model: median, half the distance between quartiles, share of the unfused median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("mode", choices=["eager", "reduce-overhead", "captured"])
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bf16-weights", action="store_true", help="weights and AdamW's state in bf16, no autocast")
    parser.add_argument("--profile", action="store_true", help="print the kernels of ten steps of each instead")
    options = parser.parse_args()
    model, recipe = random_model(options.config, "cuda"), FusionConfig(layers="last:8")
    models = random_forms(model, recipe)
    batch = random_batch(model, options.batch_size, 128) | {"labels": torch.zeros(options.batch_size).long().cuda()}
    if options.mode == "captured":
        del batch["attention_mask"]  # making the mask reads from the GPU, which a capture cannot
    if options.bf16_weights:
        models = {name: each.bfloat16() for name, each in models.items()}
    steps = {
        name: _step(each.train(options.dropout), batch, options.mode, autocast=not options.bf16_weights)
        for name, each in models.items()
    }
    if options.profile:
        for name, step in steps.items():
            print(name, _kernels(step), sep="\n", flush=True)
        return
    times = in_turn([_timed(step) for step in steps.values()], seconds=1.0)
    for name, taken in zip(steps, times, strict=True):
        share = taken.median / times[0].median
        print(
            f"{name}: {1e3 * taken.median:.2f} ± {1e3 * taken.spread / 2:.2f} ms, {share:.3f} of unfused", flush=True
        )


def _timed(step: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def _kernels(step: Callable[[], None]) -> str:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(10):
            step()
        torch.cuda.synchronize()
    return profiled.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=70)


def _step(model: PreTrainedModel, batch: dict[str, torch.Tensor], mode: str, autocast: bool) -> Callable[[], None]:
    """A step of a model, warmed up, compiled and captured as asked for."""
    if mode == "captured":
        for layer in model.roberta.encoder.layer:
            layer.compile()
    elif mode == "reduce-overhead":
        model.compile(mode="reduce-overhead")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True, capturable=True)

    def step() -> None:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=mode != "captured"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stream = torch.cuda.Stream() if mode == "captured" else torch.cuda.current_stream()  # a capture wants its own
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    if mode != "captured":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_: object = optimizer) -> None:  # its state, which the graph writes to, lives as long as the graph
        graph.replay()

    return replay


if __name__ == "__main__":
    main()
