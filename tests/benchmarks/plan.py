"""What fusing costs by width and by the number of FFNs, measured here, and from that a plan for models not run.

    python tests/benchmarks/plan.py [--picture model_cards/pictures/cost-by-width.png]

Measures on one thread, in seconds of CPU: Ward and `eliminate` on random FFNs of four widths (gated, four units to a
number of the hidden state), and on 1 to 8 FFNs of one width. Draws them with the slopes of straight lines through
them, fits constants (for Ward of I² f and I², f numbers a unit; for elimination of I³ and I² d), says what they give
for FFNs that were run, and prints the plan of docs/scale.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elimination import random_moments
from matplotlib.figure import Figure
from scipy.optimize import nnls
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.fusion import moment_bytes, reduction_bytes
from hf_mlp_fusion.modeling.ffn import FFN
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.tensors import eliminate
from hf_mlp_fusion.tensors.clustering import ward

WIDTHS, COUNTS, COUNTED = (1024, 1536, 2048, 3072, 4096), (1, 2, 4, 8), 1024
CPU_DOLLARS, GPU_DOLLARS = 0.05, 2.5  # an hour of a core, of an H100: assumed
CORES = 32


def operations(units: int, hidden: int) -> float:
    """About those of an elimination."""
    return 3.0 * units**3 + 4.0 * units**2 * hidden


# Seconds of eliminations on an H100 (docs/quality.md): drops one after another, and operations of all FFNs. Of the
# second and third 7 and 28 FFNs go together, so two turns make all.
ON_GPU = {
    (14336 - 3584, operations(14336, 4096)): 6.6,
    (2 * (3072 - 768), 12 * operations(3072, 768)): 1.8,
    (2 * (1536 - 768), 30 * operations(1536, 576)): 1.1,
}
FEWEST = 64  # units that an elimination on statistics goes down to


@dataclass(frozen=True)
class Shape:
    """A model: FFNs of one shape, and bytes of all else in bf16."""

    name: str
    stacks: int
    experts: int
    units: int
    hidden: int
    rest: float

    @property
    def ffns(self) -> int:
        return self.stacks * self.experts

    @property
    def ffn_bytes(self) -> int:
        return 6 * self.units * self.hidden

    def ffn(self) -> FFN:
        """One of them, without memory."""
        sizes = {"vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 8, "hidden_size": self.hidden}
        with torch.device("meta"):
            return next(iter(find_ffns(LlamaForCausalLM(LlamaConfig(intermediate_size=self.units, **sizes)))))


MODELS = (
    Shape("70 B, dense: 80 × 28,672 × 8,192", 80, 1, 28672, 8192, 28.4e9),
    Shape("400 B: 24 × 128 experts of 8,192 × 5,120", 24, 128, 8192, 5120, 28e9),
)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The shorter of two times."""
    taken = []
    for _ in range(2):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def measure() -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Seconds by width, and by the number of FFNs, of both ways."""
    by_width: dict[str, dict[int, float]] = {"ward": {}, "elimination": {}}
    by_count: dict[str, dict[int, float]] = {"ward": {}, "elimination": {}}
    for width in WIDTHS:
        hidden = width // 4
        features, moments = torch.randn(width, 3 * hidden), random_moments(width, hidden, "cpu")
        by_width["ward"][width] = cpu_seconds(lambda f=features, w=width: ward(f, w // 4))
        by_width["elimination"][width] = cpu_seconds(lambda m=moments, w=width: eliminate([m], w // 4))
        print(width, *(f"{name} {found[width]:.2f} s" for name, found in by_width.items()), flush=True)
    some = [random_moments(COUNTED, COUNTED // 4, "cpu") for _ in range(max(COUNTS))]
    vectors = [torch.randn(COUNTED, 3 * COUNTED // 4) for _ in some]
    for count in COUNTS:
        by_count["ward"][count] = cpu_seconds(lambda n=count: [ward(item, COUNTED // 4) for item in vectors[:n]])
        by_count["elimination"][count] = cpu_seconds(lambda n=count: eliminate(some[:n], COUNTED // 4))
    return by_width, by_count


def slope(found: dict[int, float]) -> float:
    """Of the line through them, both axes logarithmic."""
    return float(np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0])


def draw(by_width: dict[str, dict[int, float]], by_count: dict[str, dict[int, float]], path: Path) -> None:
    """Two panels."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    labels = ("units of an FFN (hidden size a quarter)", f"FFNs (layers, experts) of {COUNTED:,} units")
    for axes, found, label in zip(panels, (by_width, by_count), labels, strict=True):
        for (name, points), colour in zip(found.items(), ("tab:blue", "tab:orange"), strict=True):
            x, y = np.array(list(points)), np.array(list(points.values()))
            steep, start = np.polyfit(np.log(x), np.log(y), 1)
            axes.plot(x, np.exp(start) * x**steep, color=colour, lw=1)
            axes.plot(x, y, "o", color=colour, label=f"{name}, slope {steep:.2f}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(list(points), [f"{item:,}" for item in points])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("seconds of CPU, one thread")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120, facecolor="white")


def fit(found: Mapping[Any, float], *terms: Callable[[Any], float]) -> np.ndarray:
    """Constants of the terms, none negative, all that was timed weighing alike."""
    rows = np.array([[term(item) / seconds for term in terms] for item, seconds in found.items()])
    return nnls(rows, np.ones(len(rows)))[0]


def main() -> None:
    """Measures, draws, fits, plans."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    by_width, by_count = measure()
    for kind, found in (("width", by_width), ("number of FFNs", by_count)):
        print(f"slopes by {kind}:", ", ".join(f"{name} {slope(item):.2f}" for name, item in found.items()))
    if given.picture:
        draw(by_width, by_count, given.picture)
    wards = fit(by_width["ward"], lambda width: 0.75 * width**3, lambda width: width**2)
    drops = fit(by_width["elimination"], lambda width: operations(width, width // 4))
    # A drop is some small kernels, however wide the FFN.
    on_gpu = fit(ON_GPU, lambda run: run[0], lambda run: run[1])

    def ward_seconds(units: int, hidden: int) -> float:
        return float(wards @ [3 * units**2 * hidden, units**2])

    def drop_seconds(units: int, hidden: int) -> float:
        return float(drops[0]) * operations(units, hidden)

    def gpu_seconds(units: int, hidden: int) -> float:
        return float(on_gpu @ [units - FEWEST, operations(units, hidden)])

    print("constants: Ward", wards, "elimination", drops, "on an H100", on_gpu)
    print(f"14,336 × 4,096: Ward {ward_seconds(14336, 4096):.0f} s, elimination {drop_seconds(14336, 4096):.0f} s")
    print(f"8,192 × 3,072 on an H100: elimination {gpu_seconds(8192, 3072):.1f} s")
    print("\n| model | | without data | on statistics |\n| --- | --- | ---: | ---: |")
    for model in MODELS:
        units, hidden = model.units, model.hidden
        stored = model.ffns * model.ffn_bytes + model.rest
        result = model.ffns * model.ffn_bytes / 4 + model.rest
        ffn, quarter, config = model.ffn(), units // 4, FusionConfig(width=0.25)
        moments, stack = moment_bytes(ffn, units), model.experts * model.ffn_bytes
        work = {known: reduction_bytes(ffn, quarter, config, calibrated=known) for known in (False, True)}
        read = (2 if model.experts > 1 else 1) * stack  # a converted parameter beside its parts
        plain = 1.5e9 + read + work[False]
        known = 1.5e9 + max(read, stack + moments + work[True])
        hours = [model.ffns * seconds(units, hidden) / 3600 for seconds in (ward_seconds, drop_seconds)]
        gpu = model.ffns * gpu_seconds(units, hidden) / 3600
        print(f"| {model.name} | memory, a process | {plain / 1e9:.0f} GB | {known / 1e9:.0f} GB |")
        disk = f"{(stored + result) / 1e12:.2f} TB"
        print(f"| | disk: model and result; statistics | {disk} | + {model.ffns * moments / 1e12:.2f} TB |")
        print(f"| | hours of {CORES} cores, a process each | {hours[0] / CORES:.1f} | {hours[1] / CORES:.1f} |")
        print(f"| | dollars | {hours[0] * CPU_DOLLARS:.0f} | {hours[1] * CPU_DOLLARS:.0f} |")
        print(f"| | hours of one H100 for the elimination, dollars | | {gpu:.1f}, {gpu * GPU_DOLLARS:.0f} |")


if __name__ == "__main__":
    main()
