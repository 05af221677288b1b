"""How many rows, of how many tokens, the numbers of a kernel match (s1 and s2) need.

    python tests/benchmarks/kernel_rows.py --model ../shared/models/gpt2-mini --texts texts.txt [--rows 96]

A model is fused without a match. Of many rows, the kernels of both give the numbers wanted; a kernel's entry depends
on two rows alone, so those of fewer rows are parts of it. Prints, for numbers of rows and tokens, how far the numbers
of a draw of so few rows are from those of all: the median and the 90th percentile over FFNs and draws, and the
largest.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data import make_batches, read_texts
from hf_mlp_fusion.measure import ntk
from hf_mlp_fusion.modeling.find import find_ffns

TOKENS = (128, 64, 32)
ROWS = (2, 4, 8, 16, 32)
DRAWS = 20


def kernels(model, names, batches):
    """The kernels that are matched, by FFN and part: `[rows, rows]`."""
    blocks = {
        f"{ffn.name}:{part}": parameters
        for ffn in find_ffns(model)
        if ffn.name in names
        for part, parameters in ffn.kernel_parts().items()
    }
    return ntk(model, batches, parameters=blocks).blocks


def main() -> None:
    """Prints a row a number of tokens and rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--width", type=float, default=0.5)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    masked = AutoConfig.from_pretrained(options.model).model_type in ("bert", "roberta")
    head = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = head.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = read_texts(options.texts)
    rows = make_batches(model, tokenizer, texts, samples=options.rows + 64)
    calibration, measured = rows[:8], rows[8:]
    fused = fuse_model(model, FusionConfig(width=options.width, ntk="none"), calibration=calibration)
    names = [ffn.name for ffn in find_ffns(fused) if ffn.is_fused]
    wanted = {}
    print(f"{options.model}: {options.rows} rows, width {options.width}")
    print("| tokens | rows | median | 90 % | largest |\n| ---: | ---: | ---: | ---: | ---: |")
    for tokens in TOKENS:
        cut = [{name: tensor[:, :tokens] for name, tensor in batch.items()} for batch in measured]
        before, after = (kernels(each, names, cut) for each in (model, fused))
        wanted = wanted or {name: before[name].norm() / after[name].norm() for name in before}
        for count in ROWS:
            generator = torch.Generator().manual_seed(0)
            errors = []
            for _ in range(DRAWS):
                some = torch.randperm(options.rows, generator=generator)[:count]
                for name, ratio in wanted.items():
                    first, second = (kernel[name][some][:, some].norm() for kernel in (before, after))
                    errors.append(float(first / second / ratio - 1))
            found = torch.tensor(errors).abs()
            print(
                f"| {tokens} | {count} | {found.median():.1%} | {found.quantile(0.9):.1%} | {found.max():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
