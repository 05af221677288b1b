"""How long fusing takes on a GPU, and how much of its memory: FFNs of usual shapes, and a model that need not fit.

    python tests/benchmarks/fuse_on_gpu.py [--cases encoder expert large] [--folder FOLDER] [--device cuda]

`encoder` is RoBERTa-base's shape (12 FFNs of 3,072 × 768), `expert` one gated FFN of 14,336 × 4,096, each to a quarter
without data and calibrated on 512 rows of 128 random tokens, by `fuse_model`. `large` is a Llama of 3.2 billion
parameters (28 layers of 8,192 × 3,072) in bfloat16, written to FOLDER/model, calibrated there layer by layer on 256
rows (FOLDER/statistics) and fused to a quarter (FOLDER/fused). All weights are random. `--tiny` tries the script.
Libraries are loaded before, by fusing a model of no size, which is printed as well. Prints seconds and the GPU's peak
of memory, of all that torch reserved.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, LlamaConfig, LlamaForCausalLM, PretrainedConfig, RobertaConfig
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.fusion import calibrate_checkpoint
from hf_mlp_fusion.streaming import fuse_checkpoint

LENGTH = 128


def llama(layers: int, hidden: int, units: int, vocabulary: int) -> LlamaConfig:
    """A config of Llama's shape."""
    heads = max(1, hidden // 128)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8 if heads % 8 == 0 else heads,
        tie_word_embeddings=True,
    )


SHAPES: dict[str, PretrainedConfig] = {
    "encoder": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "expert": llama(1, 4096, 14336, 32000),
    "large": llama(28, 3072, 8192, 128256),
}
TINY: dict[str, PretrainedConfig] = {
    "encoder": RobertaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2
    ),
    "expert": llama(1, 128, 256, 99),
    "large": llama(3, 128, 256, 99),
}


def random_rows(vocabulary: int, rows: int, at_once: int) -> list[dict[str, torch.Tensor]]:
    """Batches of random tokens."""
    ids = torch.randint(5, vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(at_once)]


def timed(title: str, device: str, function: Callable[[], object]) -> None:
    """Runs something and prints what it took."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    function()
    if cuda:
        torch.cuda.synchronize()
    peak = f", GPU peak {torch.cuda.max_memory_reserved() / 1e9:.2f} GB" if cuda else ""
    print(f"{title}: {time.perf_counter() - started:.2f} s{peak}", flush=True)


def load_libraries(device: str) -> None:
    """The first fusion of a process imports and compiles; it is told by itself."""
    with torch.device(device):
        model = AutoModelForMaskedLM.from_config(TINY["encoder"]).eval()
    rows = random_rows(99, 8, 8)
    timed("libraries loaded, and two tiny FFNs", device, lambda: fuse_model(model, FusionConfig(width=0.25)))
    timed("calibrated", device, lambda: fuse_model(model, FusionConfig(width=0.25), calibration=rows))


def in_memory(case: str, config: PretrainedConfig, device: str) -> None:
    """Fuses a model in memory, without data and with."""
    kind = AutoModelForMaskedLM if case == "encoder" else LlamaForCausalLM
    dtype = torch.float32 if case == "encoder" else torch.bfloat16
    with torch.device(device):
        model = (kind.from_config(config) if case == "encoder" else kind(config)).to(dtype).eval()
    rows = random_rows(config.vocab_size, 512, 32)
    model(**{name: tensor.to(device) for name, tensor in rows[0].items()})
    recipes = {"without data": ({}, None), "calibrated": ({}, rows)}
    recipes["calibrated, metric of the output"] = ({"metric": "output"}, rows)
    for name, (fields, data) in recipes.items():
        recipe = FusionConfig(width=0.25, **fields)
        timed(f"{case}, {name}", device, lambda: fuse_model(model, recipe, calibration=data))  # noqa: B023


def large(config: PretrainedConfig, folder: Path, device: str) -> None:
    """Calibrates and fuses a model on disk."""
    model, statistics, fused = (folder / name for name in ("model", "statistics", "fused"))
    with torch.device(device):
        made = LlamaForCausalLM(config).to(torch.bfloat16)
    made.save_pretrained(model)
    size = made.num_parameters() * 2 / 1e9
    print(f"large: {made.num_parameters() / 1e9:.2f} billion parameters, {size:.2f} GB", flush=True)
    del made
    rows = random_rows(config.vocab_size, 256, 8)
    timed("large, calibrated", device, lambda: calibrate_checkpoint(str(model), statistics, rows, device=device))
    recipe = FusionConfig(width=0.25, ntk="none")

    def fuse() -> None:
        fuse_checkpoint(str(model), fused, recipe, statistics=statistics, device=device)

    timed("large, fused on statistics", device, fuse)


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--folder", type=Path, default=Path("runs/large"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    load_libraries(options.device)
    for case in options.cases:
        config = (TINY if options.tiny else SHAPES)[case]
        if case == "large":
            large(config, options.folder, options.device)
        else:
            in_memory(case, config, options.device)


if __name__ == "__main__":
    main()
