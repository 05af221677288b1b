"""What P costs a stack of experts: tokens per second against a stock block of the same width.

    python tests/benchmarks/experts_on_gpu.py [--device cuda] [--dtype bfloat16] [--shape olmoe|mixtral|qwen3_moe|tiny]
        [--tokens 8192] [--few 32] [--seconds 1.0] [--scales] [--implementations eager batched_mm grouped_mm]

The block is a router with its experts, at half of the model's own width, alone. It runs eagerly and compiled (not the
implementation `eager`, whose loop no graph holds), forward and in a training step (forward, backward). `batched_mm`
gathers a weight for each row and is made for few tokens: it runs with `--few`, the others with `--tokens` and with
`--few`. Places: `chosen` is what the package does, `weights` and `activations` P held in one place. With `--scales`
there are s1, s2 and s3 besides, as the default calibration sets them. A share below 1 is what P costs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure.latency import in_turn
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.stack_modules import StackedMLP

SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "olmoe": (
        "OlmoeConfig",
        {"hidden_size": 2048, "intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "mixtral": (
        "MixtralConfig",
        {"hidden_size": 4096, "intermediate_size": 7168, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"hidden_size": 2048, "moe_intermediate_size": 384, "num_experts": 128, "num_experts_per_tok": 8},
    ),
    "tiny": (
        "MixtralConfig",
        {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
PLACES: dict[str, Callable[..., bool] | None] = {
    "chosen": None,
    "weights": lambda *_: False,
    "activations": lambda *_: True,
}


def main() -> None:
    """Prints a line an implementation, way to run and place."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shape", choices=SHAPES, default="olmoe")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--few", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--scales", action="store_true")
    parser.add_argument("--implementations", nargs="+", default=["eager", "batched_mm", "grouped_mm"])
    options = parser.parse_args()
    stock, fused = blocks(options)
    print(f"{options.shape}, torch {torch.__version__}, transformers {transformers.__version__}, {options.dtype}")
    print("implementation tokens run      mode     place        stock/s   fused/s  share")
    for name in options.implementations:
        counts = [options.few] if name == "batched_mm" else [options.few, options.tokens]
        for tokens, compiled, mode in itertools.product(counts, (False, True), ("forward", "training")):
            if compiled and name == "eager":
                continue
            measure(options, stock, fused, name, tokens, compiled=compiled, mode=mode)


def blocks(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """A stock block, and its twin with P (of twice its units)."""
    config_name, sizes = SHAPES[options.shape]
    small = {"num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = getattr(transformers, config_name)(**sizes | small | {"pad_token_id": 0})
    torch.manual_seed(0)
    with torch.device(options.device):
        model = transformers.AutoModel.from_config(config, dtype=getattr(torch, options.dtype))
    assert config.model_type in FAMILIES
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    stock = model.layers[0].mlp
    twin = copy.deepcopy(model)
    ffn = next(find_ffns(twin))
    ffn.put_scaling(ffn.new_scaling(2 * ffn.width))
    if options.scales:
        ffn.holder.scales = [(1.5, 0.7, 1.2)] * len(ffn.holder.cluster_sizes)
    return stock, twin.layers[0].mlp


def measure(
    options: argparse.Namespace,
    stock: nn.Module,
    fused: nn.Module,
    name: str,
    tokens: int,
    *,
    compiled: bool,
    mode: str,
) -> None:
    """Times a stock block and its twin in turn, P in each of the places that the implementation has."""
    places = PLACES if name == "grouped_mm" else {"chosen": None}
    usual = StackedMLP._activations_pay
    stock.experts.config._experts_implementation = name
    fused.experts.config._experts_implementation = name
    size = stock.experts.gate_up_proj.shape[-1]
    hidden = torch.randn(1, tokens, size, device=options.device, dtype=getattr(torch, options.dtype))
    for place, pays in places.items():
        try:
            if pays is not None:
                StackedMLP._activations_pay = pays
            torch.compiler.reset()
            runs = [
                timed(step(block, hidden, compiled=compiled, mode=mode), options.device) for block in (stock, fused)
            ]
            first, second = in_turn(runs, seconds=options.seconds)
        finally:
            StackedMLP._activations_pay = usual
        rates = tokens / first.median, tokens / second.median
        run = "compiled" if compiled else "eagerly"
        print(
            f"{name:<14} {tokens:>6} {run:<8} {mode:<8} {place:<11} {rates[0]:>9,.0f} {rates[1]:>9,.0f} "
            f"{rates[1] / rates[0]:>6.3f}",
            flush=True,
        )


def step(block: nn.Module, hidden: torch.Tensor, *, compiled: bool, mode: str) -> Callable[[], None]:
    """A forward, or a forward and backward, warmed up."""
    run: Any = torch.compile(block) if compiled else block
    inputs = hidden.clone().requires_grad_(mode == "training")

    def forward() -> None:
        with torch.no_grad():
            run(inputs)

    def train() -> None:
        output = run(inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(torch.ones_like(output))
        block.zero_grad(set_to_none=True)
        inputs.grad = None

    chosen = forward if mode == "forward" else train
    for _ in range(3):
        chosen()
    return chosen


def timed(run: Callable[[], None], device: str) -> Callable[[], float]:
    """A function that tells the seconds of a run."""

    def once() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return once


if __name__ == "__main__":
    main()
