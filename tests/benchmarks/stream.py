"""A checkpoint larger than the memory that fusing it may take: made, streamed, and measured.

    python tests/benchmarks/stream.py FOLDER [--layers 13] [--hidden 4096] [--units 14336] [--fuse last:6]
        [--clustering kmeans | --statistics]

Writes a Llama-shaped checkpoint of random bfloat16 weights into FOLDER/model, never holding more than a piece of a
tensor (13 layers of 8-billion-parameter shape are 6.2 GB), fuses it into FOLDER/fused in a process of its own, and
prints that process's peak of resident memory, mapped pages counted, beside the bound: 1.5 GB + three times the largest
FFN; with statistics (made up before) 1.5 GB + it + 24 units² + 16 units × hidden bytes. Exits with 1 above it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.fusion import Statistics, plan_fusion, source_of
from hf_mlp_fusion.fusion.statistics import FFNStatistics
from hf_mlp_fusion.fusion.statistics_header import Header
from hf_mlp_fusion.hub import stored_tensors
from hf_mlp_fusion.modeling.building import empty_model
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.streaming.passes import _filled, parameters_of
from hf_mlp_fusion.streaming.shards import Shards, saved_tensors
from hf_mlp_fusion.streaming.stored import StoredModel
from hf_mlp_fusion.tensors import Moments

_STREAM = """
import sys
from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.streaming import fuse_checkpoint
source, out, width, layers, clustering, statistics = sys.argv[1:]
config = FusionConfig(width=float(width), layers=layers, clustering=clustering, ntk="none")
fuse_checkpoint(source, out, config, statistics=statistics or None)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def random_pieces(shape: torch.Size, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A random tensor, some rows at a time."""
    for start in range(0, shape[0], 512):
        piece = (min(512, shape[0] - start), *shape[1:])
        yield torch.randn(piece, generator=generator) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)


def make_checkpoint(folder: Path, layers: int, hidden: int, units: int) -> None:
    """Writes the checkpoint."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        vocab_size=32000,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    model = empty_model(LlamaForCausalLM, config).to(torch.bfloat16)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with Shards(folder, saved_tensors(model), "5GB") as shards:
        for name, tensor in shards.tensors.items():
            shards.write(name, random_pieces(tensor.shape, generator))
    shards.write_index(folder, model.num_parameters())


def make_statistics(folder: Path, source: Path, layers: str) -> None:
    """Writes statistics of the FFNs that will be fused: of 4,096 random tokens, and units of different sizes."""
    stock = load_stock_model(str(source), device="meta")
    stored = StoredModel(stock, stored_tensors(str(source), {}))
    plan = plan_fusion(stock, FusionConfig(width=0.5, layers=layers))
    folder.mkdir()
    made = Statistics.create(folder, Header(source_of(stock), 32, 4096, "made up"))
    generator = torch.Generator().manual_seed(0)
    for ffn, width in plan.widths:
        hidden = torch.randn(4096, ffn.width, generator=generator).mul_(torch.rand(ffn.width, generator=generator))
        with _filled(stock, stored.tensors(parameters_of([(ffn, width)])), "cpu"):
            output = hidden @ ffn.read().down.float().T
            gram, cross = ((hidden.T @ item).div_(len(hidden)).double() for item in (hidden, output))
            zeros = (torch.zeros(size, dtype=torch.float64) for size in cross.shape)
            moments = Moments(len(hidden), gram, cross, *zeros, float(output.square().sum(1).mean()))
            made.write(ffn, FFNStatistics(moments))
    made.done([ffn.name for ffn, _ in plan.widths], whole=True)


def main() -> None:
    """Makes, streams, measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--units", type=int, default=14336)
    parser.add_argument("--fuse", default="last:6")
    parser.add_argument("--width", default="0.25")
    parser.add_argument("--clustering", default="ward")
    parser.add_argument("--statistics", action="store_true")
    options = parser.parse_args()
    model, fused, statistics = (options.folder / name for name in ("model", "fused", "statistics"))
    if not model.exists():
        started = time.perf_counter()
        make_checkpoint(model, options.layers, options.hidden, options.units)
        print(f"made in {time.perf_counter() - started:.0f} s", flush=True)
    if options.statistics and not statistics.exists():
        make_statistics(statistics, model, options.fuse)
    started = time.perf_counter()
    command = [sys.executable, "-c", _STREAM, str(model), str(fused), options.width, options.fuse, options.clustering]
    command.append(str(statistics) if options.statistics else "")
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = time.perf_counter() - started, int(run.stdout) * 1024
    ffn = 3 * options.hidden * options.units * 2
    moments = 8 * options.units * (3 * options.units + 2 * options.hidden)
    bound = 1.5e9 + (ffn + moments if options.statistics else 3 * ffn)
    sizes = {name: sum(p.stat().st_size for p in folder.iterdir()) for name, folder in (("m", model), ("f", fused))}
    report = json.loads((fused / "fusion_report.json").read_text())
    each = sum(item["seconds"] for item in report["ffns"]) / len(report["ffns"])
    print(
        f"checkpoint {sizes['m'] / 1e9:.2f} GB, FFN {ffn / 1e6:.0f} MB; written {sizes['f'] / 1e9:.2f} GB; "
        f"{seconds:.0f} s, {len(report['ffns'])} FFNs of {each:.0f} s each; peak {peak / 1e9:.2f} GB of at most "
        f"{bound / 1e9:.2f} GB"
    )
    sys.exit(peak > bound)


if __name__ == "__main__":
    main()
