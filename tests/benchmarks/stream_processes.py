"""How much faster several processes stream a checkpoint than one, on statistics, and whether they make the same.

    python tests/benchmarks/stream_processes.py FOLDER [--processes 2] [--layers 8] [--hidden 512] [--units 2048]
        [--turns 3] [--device cpu]

Makes the checkpoint and its statistics as `stream.py` does, fuses it in turns with one process and with several, a
thread each, and prints the seconds of the receipts (libraries not counted) and the ratio of the shortest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from stream import make_checkpoint, make_statistics


def main() -> None:
    """Prints a line a run, and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, default in (("processes", 2), ("layers", 8), ("hidden", 512), ("units", 2048), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    model, statistics = given.folder / "model", given.folder / "statistics"
    if not statistics.exists():
        make_checkpoint(model, given.layers, given.hidden, given.units)
        make_statistics(statistics, model, "all")
    best: dict[int, float] = {}
    for _ in range(given.turns):
        for count in (1, given.processes):
            out = given.folder / f"fused{count}"
            shutil.rmtree(out, ignore_errors=True)
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "--module"]
            command = [sys.executable, *launch, "hf_mlp_fusion.cli", "fuse", str(model), str(out), "--stream"]
            command += ["--statistics", str(statistics), "--width", "0.25", "--device", given.device]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            seconds = json.loads((out / "fusion_report.json").read_text())["seconds"]
            best[count] = min(seconds, best.get(count, seconds))
            print(f"{count} processes: {seconds:.1f} s", flush=True)
    files = [sorted((given.folder / f"fused{count}").glob("*.safetensors")) for count in best]
    same = all(one.read_bytes() == two.read_bytes() for one, two in zip(*files, strict=True))
    print(f"{best[1] / best[given.processes]:.2f} times as fast; weights {'equal' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
