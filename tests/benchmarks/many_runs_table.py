"""Tables of the runs that `many_runs.py` made: python tests/benchmarks/many_runs_table.py OUT.jsonl [OUT.jsonl ...]"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def read(path: Path) -> list[dict]:  # type: ignore[type-arg]
    """The lines of a file of runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best(line: dict) -> float:  # type: ignore[type-arg]
    """The score on the validation rows, after the epoch that was best on the rows held out."""
    return line["dev"][line["held"].index(max(line["held"]))]


def table(lines: list[dict]) -> None:  # type: ignore[type-arg]
    """Prints scores by rate, collapses, closeness to the unfused curve, and scores at the rate that was chosen."""
    kept = defaultdict(list)
    for line in lines:
        kept[line["task"], line["form"], line["rate"]].append(line)
    unfused = {(line["task"], line["rate"], line["seed"]): line for line in lines if line["form"] == "unfused"}
    print("| task | rate | form | score, mean ± spread | least | collapsed | curve's gap to unfused | seeds |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for (task, form, rate), own in sorted(kept.items(), key=lambda item: (item[0][0], item[0][2])):
        scores = [best(line) for line in own]
        peers = [line for (known, other, _), line in unfused.items() if (known, other) == (task, rate)]
        floor = statistics.mean(map(best, peers)) / 2 if peers else 0.0
        fallen = sum(value < floor or line["same"][-1] for value, line in zip(scores, own, strict=True))
        pairs = [(line["curve"], unfused[task, rate, line["seed"]]["curve"]) for line in own if _paired(line, unfused)]
        gaps = [statistics.mean(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairs]
        gap = f"{statistics.mean(gaps):.3f}" if gaps and form != "unfused" else ""
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        figures = f"{statistics.mean(scores):.2f} ± {spread:.2f} | {min(scores):.1f} | {fallen}"
        print(f"| {task} | {rate:g} | {form} | {figures} | {gap} | {len(own)} |")
    print(
        "\n| form | " + " | ".join(sorted({line["task"] for line in lines})) + " | mean | of unfused | task by task |"
    )
    chosen: dict[str, dict[str, float]] = defaultdict(dict)
    for task, form in dict.fromkeys((line["task"], line["form"]) for line in lines):
        groups = [own for (known, other, _), own in kept.items() if (known, other) == (task, form)]
        top = max(groups, key=lambda own: statistics.mean(max(line["held"]) for line in own))
        chosen[form][task] = statistics.mean(map(best, top))
    for form, scores in chosen.items():
        peer = {task: chosen["unfused"][task] for task in scores if chosen.get("unfused", {}).get(task, 0.0) > 0}
        share = " | "
        if peer:
            whole = sum(scores[task] for task in peer) / sum(peer.values())
            each = statistics.mean(scores[task] / peer[task] for task in peer)
            share = f"{100 * whole:.1f} % | {100 * each:.1f} %"
        cells = " | ".join(f"{scores[task]:.2f}" if task in scores else "" for task in sorted({t for t, *_ in kept}))
        print(f"| {form} | {cells} | {statistics.mean(scores.values()):.2f} | {share} |")


def _paired(line, unfused) -> bool:  # type: ignore[no-untyped-def]
    return (line["task"], line["rate"], line["seed"]) in unfused


if __name__ == "__main__":
    table([line for path in sys.argv[1:] for line in read(Path(path))])
