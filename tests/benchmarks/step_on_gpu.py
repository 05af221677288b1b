"""What a step of fine-tuning takes on a GPU, with and without the time that Python needs to start its kernels.

    python tests/benchmarks/step_on_gpu.py SHAPE [SHAPE ...] [--modes eager layers captured] [--layers last:8]
        [--dropout] [--batch-size 32] [--bf16-weights] [--folded] [--seconds 1] [--profile]

A SHAPE is `roberta-base` (a classifier), `llama` (a causal model of 0.8 billion parameters), `tiny` (to try the
script on a CPU), or a folder with a config.json (a classifier). The models are stock and fused to a quarter, with
random weights, and run in turns on 128 tokens a row, in bf16: by autocast or, with `--bf16-weights`, in the weights.

`layers` compiles each layer, as accelerate's regional compilation does. `captured` captures the whole step (forward,
backward, AdamW) with them in one CUDA graph and times its replays: what is left is the GPU's own time.
`reduce-overhead` is `torch.compile`'s mode of that name, of the whole model. The limit beside each row is the share of
the matrix products and attention that is left: what the step would take if it took nothing else.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import RobertaConfig as Roberta

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.bench.cost import random_batch, random_forms, random_model
from hf_mlp_fusion.data import Batch
from hf_mlp_fusion.measure import flops
from hf_mlp_fusion.measure.latency import in_turn

SHAPES = {
    "roberta-base": Roberta(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5),
    "llama": LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=12,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        use_cache=False,
    ),
    "tiny": LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=256, num_hidden_layers=3, use_cache=False),
}
WIDTH = 0.25


def main() -> None:
    """Prints rows of each shape: a mode, a model, the median, half the distance between quartiles, shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="+", metavar="SHAPE")
    modes = ["eager", "layers", "captured", "reduce-overhead"]
    parser.add_argument("--modes", nargs="+", choices=modes, default=["eager", "layers", "captured"])
    parser.add_argument("--layers", default="all", help="which are fused")
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bf16-weights", action="store_true", help="weights and AdamW's state in bf16, no autocast")
    parser.add_argument("--folded", action="store_true", help="time the fused model without P too")
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend on each model in each mode")
    parser.add_argument("--profile", action="store_true", help="print the kernels of ten steps of each instead")
    options = parser.parse_args()
    for shape in options.shapes:
        _time_shape(shape, options)
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _time_shape(shape: str, options: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    started = time.perf_counter()
    model = _model(shape, device)
    models = random_forms(model, FusionConfig(WIDTH, options.layers))
    if not options.folded:
        del models["folded"]
    batch = random_batch(model, options.batch_size, 128)
    causal = isinstance(model, LlamaForCausalLM)
    batch["labels"] = batch["input_ids"] if causal else torch.zeros(options.batch_size, device=device).long()
    products = {name: flops(each, batch, training=True) for name, each in models.items()}
    limit = {name: count / products["unfused"] for name, count in products.items()}
    print(
        f"\n{shape}: {model.num_parameters() / 1e6:.0f} M parameters, layers {options.layers} to {WIDTH:g}, "
        f"{options.batch_size} × 128 tokens, {'bf16 weights' if options.bf16_weights else 'bf16 autocast'}, {where}; "
        f"the fused FFNs have {(1 - limit['fused']) / (1 - WIDTH):.3f} of the products"
    )
    if options.bf16_weights:
        models = {name: each.bfloat16() for name, each in models.items()}
    # Making a mask reads from the GPU, which a capture cannot.
    del batch["attention_mask"]
    if causal:
        batch["attention_mask"] = (
            torch.ones(128, 128, device=device).tril().bool().expand(options.batch_size, 1, -1, -1)
        )
    optimizers = {name: _optimizer(each.train(options.dropout)) for name, each in models.items()}
    layers_compiled = False
    for mode in options.modes:
        if mode in ("layers", "captured") and not layers_compiled:
            for each in models.values():
                for layer in next(module for module in each.modules() if isinstance(module, nn.ModuleList)):
                    layer.compile()
            layers_compiled = True
        steps = {
            name: _step(each, optimizers[name], batch, mode, autocast=not options.bf16_weights)
            for name, each in models.items()
        }
        if options.profile:
            for name, step in steps.items():
                print(mode, name, _kernels(step), sep="\n", flush=True)
            continue
        times = in_turn([_timed(step) for step in steps.values()], options.seconds)
        for name, taken in zip(steps, times, strict=True):
            print(
                f"{mode}, {name}: {1e3 * taken.median:.2f} ± {1e3 * taken.spread / 2:.2f} ms, "
                f"{taken.median / times[0].median:.3f} of unfused; limit {limit[name]:.3f}",
                flush=True,
            )
    print(f"{time.perf_counter() - started:.0f} s in all, compilation included", flush=True)


def _model(shape: str, device: str) -> PreTrainedModel:
    if shape not in SHAPES:
        return random_model(shape, device)
    config = SHAPES[shape]
    with torch.device(device):
        if isinstance(config, LlamaConfig):
            return LlamaForCausalLM(config)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def _optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True, capturable=model.device.type == "cuda")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(step: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        _wait()
        started = time.perf_counter()
        step()
        _wait()
        return time.perf_counter() - started

    return run


def _kernels(step: Callable[[], None]) -> str:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(10):
            step()
        torch.cuda.synchronize()
    return profiled.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=70)


def _step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, mode: str, autocast: bool
) -> Callable[[], None]:
    """A step of a model, warmed up, compiled as a whole or captured as asked for."""
    if mode == "reduce-overhead":
        model.compile(mode="reduce-overhead")
    device = model.device.type

    def step() -> None:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16, enabled=autocast, cache_enabled=False):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if mode != "captured":
        for _ in range(4):
            step()
        return step
    stream = torch.cuda.Stream()  # a capture wants its own
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_: object = optimizer) -> None:  # its state, which the graph writes to, lives as long as the graph
        graph.replay()

    return replay


if __name__ == "__main__":
    main()
