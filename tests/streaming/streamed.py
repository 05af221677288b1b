"""Fuses a checkpoint shard by shard in a process of its own, and prints how much memory that took.

Usage: python streamed.py SOURCE OUT [LAYERS [STATISTICS]]
"""

import re
import sys
import warnings
from pathlib import Path

import torch

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.streaming import fuse_checkpoint

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    source, out, layers, statistics = (*sys.argv[1:], *("all", None)[len(sys.argv) - 3 :])
    config = FusionConfig(width=0.25, layers=layers, ntk="none")
    fuse_checkpoint(source, out, config, statistics=statistics, max_shard_size="2MB")
    # Not what getrusage says: that is the parent's, before exec, where it was more.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak[1]) * 1024)  # noqa: T201
