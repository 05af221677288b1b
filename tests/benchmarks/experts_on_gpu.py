"""What P costs a stack of experts: tokens per second against a stock block of the same width, by where P stands.

    python tests/benchmarks/experts_on_gpu.py [--device cuda] [--dtype bfloat16] [--shape olmoe|mixtral|qwen3_moe|tiny]
        [--tokens 32 8192] [--seconds 0.3] [--scales] [--implementations eager batched_mm grouped_mm] [--runs eagerly
        compiled] [--modes forward training]

The block is a router with its experts, at half of the model's own width, alone. It runs eagerly and compiled (not the
implementation `eager`, whose loop no graph holds), forward and in a training step (forward, backward). `batched_mm`
gathers a weight for each row and is made for few tokens: it runs with the fewest alone. Places are those of
`hf_mlp_fusion.modeling.expert_places`; `chosen` is what the package does. All places of a line and the stock block are
timed in turn, several runs between two waits for the GPU where a run is short. With `--scales` there are s1, s2 and s3
besides, as the default calibration sets them. A share below 1 is what P costs. First all places are compared: `error`
is the largest difference to P in the weights, over the largest number, of outputs and of the gradients of inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure.latency import in_turn
from hf_mlp_fusion.modeling import stack_modules
from hf_mlp_fusion.modeling.expert_places import PLACES
from hf_mlp_fusion.modeling.find import find_ffns

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
CANDIDATES = {
    ("eager", "eagerly"): ("chosen", "each", "weights", "activations"),
    ("batched_mm", "eagerly"): ("chosen", "each", "weights"),
    ("batched_mm", "compiled"): ("chosen", "each", "weights"),
    ("grouped_mm", "eagerly"): ("chosen", "weights", "activations", "kernel"),
    ("grouped_mm", "compiled"): ("chosen", "weights"),
}
"""Places to time; where none is forced, `batched_mm` and what is compiled have P behind the activations."""
SHORTEST = 5e-3  # seconds between two waits for the GPU


def main() -> None:
    """Prints a line an implementation, number of tokens, way to run and place."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shape", choices=SHAPES, default="olmoe")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 8192])
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--scales", action="store_true")
    parser.add_argument("--implementations", nargs="+", default=["eager", "batched_mm", "grouped_mm"])
    parser.add_argument("--runs", nargs="+", default=["eagerly", "compiled"])
    parser.add_argument("--modes", nargs="+", default=["forward", "training"])
    options = parser.parse_args()
    started = time.perf_counter()
    stock, fused = blocks(options)
    print(f"{options.shape}, torch {torch.__version__}, transformers {transformers.__version__}, {options.dtype}")
    print("implementation tokens run      mode     place           stock/s    fused/s  share   error")
    for run, name, mode in itertools.product(options.runs, options.implementations, options.modes):
        for tokens in options.tokens[:1] if name == "batched_mm" else options.tokens:
            if (name, run) in CANDIDATES:
                measure(options, stock, fused, name, tokens, run=run, mode=mode)
    print(f"{time.perf_counter() - started:.0f} s")


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
    options: argparse.Namespace, stock: nn.Module, fused: nn.Module, name: str, tokens: int, *, run: str, mode: str
) -> None:
    """Times a stock block and its twin in turn, P in each of the places that there are."""
    places = CANDIDATES[name, run]
    for block in (stock, fused):
        block.experts.config._experts_implementation = name
    size = stock.experts.hidden_dim
    hidden = torch.randn(1, tokens, size, device=options.device, dtype=getattr(torch, options.dtype))
    torch.compiler.reset()
    runs = [
        timed(step(block, hidden, place, compiled=run == "compiled", mode=mode), options.device)
        for block, place in ((stock, None), *((fused, place) for place in places))
    ]
    first, *others = in_turn(runs, seconds=options.seconds)
    expected = outcome(fused, hidden, "weights")
    for place, other in zip(places, others, strict=True):
        rates = tokens / first.median, tokens / other.median
        found = outcome(fused, hidden, place)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        print(
            f"{name:<14} {tokens:>6} {run:<8} {mode:<8} {place:<11} {rates[0]:>11,.0f} {rates[1]:>10,.0f} "
            f"{rates[1] / rates[0]:>6.3f} {error:>7.4f}",
            flush=True,
        )


@contextlib.contextmanager
def standing(place: str | None) -> Iterator[None]:
    """P in a place, whatever is cheapest."""
    usual = stack_modules.cheapest_place
    if place not in (None, "chosen"):
        stack_modules.cheapest_place = FORCED[place]
    try:
        yield
    finally:
        stack_modules.cheapest_place = usual


# One function a place, for whatever is compiled holds on to the one that it saw.
FORCED: dict[str | None, Callable[..., str]] = {place: lambda *_, place=place: place for place in PLACES}


def step(
    block: nn.Module, hidden: torch.Tensor, place: str | None, *, compiled: bool, mode: str
) -> Callable[[], None]:
    """A forward, or a forward and backward, warmed up."""

    def call(rows: torch.Tensor) -> Any:
        return block(rows)

    # Code of its own, or what is compiled for one block and place would be looked through for the others as well.
    own = types.FunctionType(call.__code__.replace(co_name=f"call_{place}"), globals(), "call", (), call.__closure__)
    run: Any = torch.compile(own) if compiled else own
    inputs = hidden.clone().requires_grad_(mode == "training")

    def forward() -> None:
        with torch.no_grad(), standing(place):
            run(inputs)

    def train() -> None:
        with standing(place):
            output = run(inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(torch.ones_like(output))
        block.zero_grad(set_to_none=True)
        inputs.grad = None

    chosen = forward if mode == "forward" else train
    for _ in range(3):
        chosen()
    return chosen


def outcome(block: nn.Module, hidden: torch.Tensor, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a block that runs eagerly, and the gradient of its input."""
    inputs = hidden.clone().requires_grad_(True)
    with standing(place):
        output = block(inputs)
    output = output[0] if isinstance(output, tuple) else output
    (gradient,) = torch.autograd.grad(output, inputs, torch.ones_like(output))
    return output.detach(), gradient


def timed(run: Callable[[], None], device: str) -> Callable[[], float]:
    """A function that tells the seconds of a run: the mean of several where one is short."""

    def several(count: int) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            run()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    count = max(1, math.ceil(SHORTEST / several(3)))
    return lambda: several(count)


if __name__ == "__main__":
    main()
