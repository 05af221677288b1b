"""CPU seconds that a command takes before it works: of each light verb, over those of Python itself.

    python tests/benchmarks/startup.py [--fused FOLDER] [--comparison FOLDER] [--runs 7]

Each run starts a process, in turns with `python -c pass`; a row is the median of the differences, and the largest: of
`report`, that of the first run, which may draw. A card is written anew, and transformers asked for its task.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

CLI = [sys.executable, "-m", "hf_mlp_fusion.cli"]


def main() -> None:
    """Prints a row a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fused", help="a fused folder, for `inspect` and `card`, which is written")
    parser.add_argument("--comparison", help="a folder of `hf-mlp-fusion compare`")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    verbs = ["demo", "fuse", "tune", "inspect", "families", "compare", "report", "export", "card", "push", "bench"]
    commands = [["--version"], ["--help"], *([verb, "--help"] for verb in verbs), ["families"]]
    card = ["card", options.fused, "--base-model", "owner/name", "--license", "mit"]
    commands += [["inspect", options.fused], card] if options.fused else []
    commands += [["report", options.comparison]] if options.comparison else []
    for command in commands:
        taken = [_seconds([*CLI, *command]) - _seconds([sys.executable, "-c", "pass"]) for _ in range(options.runs)]
        print(f"{' '.join(command)}: {statistics.median(taken):.2f} s, at most {max(taken):.2f}", flush=True)
    for what in ("hf_mlp_fusion", "hf_mlp_fusion; from transformers import AutoModel", "transformers, torch"):
        taken = [
            _seconds([sys.executable, "-c", f"import {what}"]) - _seconds([sys.executable, "-c", "pass"])
            for _ in range(options.runs)
        ]
        print(f"import {what}: {statistics.median(taken):.2f} s, at most {max(taken):.2f}", flush=True)


def _seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
