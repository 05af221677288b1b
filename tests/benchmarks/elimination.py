"""How long it takes to choose the units of FFNs: all together, by `eliminate`.

    python tests/benchmarks/elimination.py [--device cuda] [--cases 30x1536x576:768 12x3072x768:768 1x14336x4096:3584]

A case is FFNs × units × outputs : units to keep, on random activations. Prints seconds, and a GPU's peak of memory.
"""

import argparse
import time

import torch

from hf_mlp_fusion.tensors import Moments, eliminate

CASES = ("30x1536x576:768", "12x3072x768:768", "1x14336x4096:3584")


def random_moments(units, outputs, device):
    """Moments of twice as many random tokens as there are units."""
    hidden = torch.randn(2 * units, units, device=device)
    gram = (hidden.T @ hidden).double() / len(hidden)
    down = torch.randn(units, outputs, device=device, dtype=torch.float64) / units**0.5
    zeros = (torch.zeros(size, device=device, dtype=torch.float64) for size in (units, outputs))
    return Moments(len(hidden), gram, gram @ down, *zeros, 1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", default=CASES)
    arguments = parser.parse_args()
    on_gpu = torch.device(arguments.device).type == "cuda"
    for case in arguments.cases:
        sizes, keep = case.split(":")
        count, units, outputs = map(int, sizes.split("x"))
        moments = [random_moments(units, outputs, arguments.device) for _ in range(count)]
        eliminate(moments[:1], units - 1)  # libraries load
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        found = eliminate(moments, int(keep))
        last = float(found[-1].rise[-1])  # which waits for a GPU
        seconds = time.perf_counter() - started
        peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
        print(f"{case}: {seconds:.2f} s (rise {last:.3g}){peak}", flush=True)
