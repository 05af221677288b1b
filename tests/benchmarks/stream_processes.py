"""How much faster several processes stream a checkpoint than one, on statistics, and whether they make the same.

    python tests/benchmarks/stream_processes.py FOLDER [--processes 2] [--layers 8] [--hidden 512] [--units 2048]
        [--turns 3] [--device cpu] [--width 0.25]

Makes the checkpoint and its statistics as `stream.py` does, fuses it in turns with one process and with several, a
thread each. Prints the seconds that fusing took (libraries not counted), by the clock and of the CPU, of the process
that took most of it; and how many times less the several took of both, the shortest run of each. On cores that others
use as well, the CPU's tells what free ones would give.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stream import make_checkpoint, make_statistics

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.streaming import fuse_checkpoint


def main() -> None:
    """Prints a line a run, and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, default in (("processes", 2), ("layers", 8), ("hidden", 512), ("units", 2048), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", default="0.25", help="or auto:0.25")
    given = parser.parse_args()
    model, statistics = given.folder / "model", given.folder / "statistics"
    if not statistics.exists():
        make_checkpoint(model, given.layers, given.hidden, given.units)
        make_statistics(statistics, model, "all")
    best: dict[int, list[float]] = {}
    for _ in range(given.turns):
        for count in (1, given.processes):
            out = given.folder / f"fused{count}"
            shutil.rmtree(out, ignore_errors=True)
            for course in statistics.glob("*.course.safetensors"):  # or the next one had nothing to do
                course.unlink()
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            command = [*launch, __file__, "--worker", str(model), str(out), str(statistics), given.device, given.width]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            taken = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
            most = [max(column) for column in zip(*taken, strict=True)]
            best[count] = [min(pair) for pair in zip(most, best.get(count, most), strict=True)]
            print(f"{count} processes: {most[0]:.1f} s, {most[1]:.1f} s of CPU", flush=True)
    clock, cpu = (one / two for one, two in zip(best[1], best[given.processes], strict=True))
    files = [sorted((given.folder / f"fused{count}").glob("*.safetensors")) for count in best]
    same = all(one.read_bytes() == two.read_bytes() for one, two in zip(*files, strict=True))
    print(f"{clock:.2f} times less by the clock, {cpu:.2f} of CPU; weights {'equal' if same else 'DIFFER'}")


def work(model: str, out: str, statistics: str, device: str, width: str) -> None:
    """One of the processes: prints its seconds and those of its CPU."""
    started, used = time.perf_counter(), time.process_time()
    config = FusionConfig(width=width if width.startswith("auto") else float(width), ntk="none")
    fuse_checkpoint(model, out, config, statistics=statistics, device=device)
    print(json.dumps([time.perf_counter() - started, time.process_time() - used]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(*sys.argv[2:])
    else:
        main()
