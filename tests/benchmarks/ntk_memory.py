"""Peak memory of the NTK over the last 8 FFNs of a RoBERTa-base-shaped model, by default for 256 samples.

Usage: python tests/benchmarks/ntk_memory.py [SAMPLES [TOKENS [GIBIBYTES OF GRADIENTS]]]
"""

import resource
import sys
import time

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from hf_mlp_fusion.measure import ntk, parameter_blocks
from hf_mlp_fusion.modeling.find import find_ffns

samples, tokens, budget = (int(value) for value in [*sys.argv[1:], *("256", "16", "4")[len(sys.argv) - 1 :]])
torch.manual_seed(0)
model = RobertaForSequenceClassification(RobertaConfig()).eval()
ids = torch.randint(5, 30000, (samples, tokens))
batches = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(8)]
blocks = parameter_blocks(model, [ffn.name for ffn in find_ffns(model) if ffn.layer >= 4])


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


loaded, started = peak(), time.perf_counter()
kernel = ntk(model, batches, parameters=blocks, gradient_bytes=budget * 2**30).total
print(f"{samples} samples of {tokens} tokens, {sum(p.numel() for p in model.parameters()):,} parameters")
print(f"kernel norm {kernel.norm():.4g}, {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")
print(f"peak RSS {peak():.2f} GiB, of which {loaded:.2f} GiB before; limit 8 GiB")
assert peak() < 8
