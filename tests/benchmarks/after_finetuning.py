"""Fuses a classifier that was fine-tuned already: what that costs, by recipe, and what healing brings back.

    python tests/benchmarks/after_finetuning.py DATA OUT.jsonl --model real-models/all-mpnet-base-v2 \\
        --tasks cola,mrpc,stsb --rate 5e-5 --seeds 5

Fine-tunes the stock model as `many_runs.py` does, fuses its last 8 FFNs to a quarter by each recipe on the training
rows (65,536 tokens of them), and heals each on its logits for three epochs of the same rows. A line a recipe and seed,
with scores of the validation rows: unfused, fused, healed. `--table OUT.jsonl` prints means and spreads.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
from collections import defaultdict
from pathlib import Path

import torch
import torch.multiprocessing
from many_runs import answers, fine_tuned, prepared, quiet, reduced, score, tune, unfused
from many_runs_table import read
from transformers import AutoTokenizer

from hf_mlp_fusion.metrics import load

RECIPES = ("folded", "folded+rows", "folded+rows+loss", "folded+rows+loss+auto")


def run(job) -> list[dict]:  # type: ignore[no-untyped-def, type-arg]
    """One fine-tuned model, fused and healed by every recipe."""
    options, task, seed = job
    quiet()
    rows = prepared(task, options.model, options.data, options.device)
    model, tokenizer = unfused(task, options, seed), AutoTokenizer.from_pretrained(options.model)
    fine_tuned(model, rows, task, options.rate, seed, "")
    model.eval()
    metric = load("glue", task)

    def measured(one) -> float:  # type: ignore[no-untyped-def]
        return round(score(metric, task, answers(one, rows["dev"]), rows["dev"])[0], 2)

    found = []
    for form in options.recipes:
        fused = reduced(model, form, rows["train"], tokenizer)
        line = {"task": task, "seed": seed, "form": form, "unfused": measured(model), "fused": measured(fused)}
        healed = copy.deepcopy(fused)
        tune(healed, model, rows["train"], tokenizer, target="logits")
        found.append({**line, "healed": measured(healed)})
    return found


def table(lines: list[dict]) -> None:  # type: ignore[type-arg]
    """Prints means and spreads over seeds."""
    kept = defaultdict(list)
    for line in lines:
        kept[line["task"], line["form"]].append(line)
    print("| task | recipe | unfused | fused | healed | seeds |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for (task, form), own in kept.items():
        columns = ([line[name] for line in own] for name in ("unfused", "fused", "healed"))
        cells = (f"{statistics.mean(one):.1f} ± {statistics.stdev(one) if len(one) > 1 else 0:.1f}" for one in columns)
        print(f"| {task} | {form} | {' | '.join(cells)} | {len(own)} |")


def main() -> None:
    """Runs, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--table", nargs="+", type=Path)
    parser.add_argument("--model", default="real-models/all-mpnet-base-v2")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["cola", "mrpc", "stsb"])
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=list(RECIPES))
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.table:
        table([line for path in options.table for line in read(path)])
        return
    jobs = [(options, *job) for job in itertools.product(options.tasks, range(options.seeds))]
    with torch.multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for lines in pool.imap_unordered(run, jobs):
            with options.out.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
