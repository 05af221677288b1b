"""s1 and s2 that the default recipe gives the really trained minis, to compare two versions of the package.

    git worktree add /tmp/before COMMIT
    PYTHONPATH=/tmp/before python tests/benchmarks/match_numbers.py MODELS TEXTS before.json
    PYTHONPATH=$PWD python tests/benchmarks/match_numbers.py MODELS TEXTS after.json before.json

MODELS is the folder of the minis. The last argument, where given, is what to compare with: prints the largest relative
difference by model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from hf_mlp_fusion import FusionConfig, fuse_model

HEADS = {
    "gpt2-mini": AutoModelForCausalLM,
    "roberta-mini": AutoModelForMaskedLM,
    "switch-mini": AutoModelForSeq2SeqLM,
}

models, texts, out, *others = sys.argv[1:]
lines = Path(texts).read_text(encoding="utf-8").splitlines()[:120]
found = {}
for name, head in HEADS.items():
    model = head.from_pretrained(Path(models) / name, dtype=torch.float32).eval()
    fused = fuse_model(model, FusionConfig(width=0.5), calibration=lines)
    found[name] = {ffn: item.get("scales") for ffn, item in fused.config.mlp_fusion["ffns"].items()}
Path(out).write_text(json.dumps(found), encoding="utf-8")
for other in others:
    before = json.loads(Path(other).read_text(encoding="utf-8"))
    for name, scales in found.items():
        pairs = [(a, b) for ffn in scales for a, b in zip(scales[ffn], before[name][ffn], strict=True)]
        print(f"{name}: {len(pairs)} numbers, largest difference {max(abs(a / b - 1) for a, b in pairs):.1e}")
