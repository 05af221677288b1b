"""Fine-tunes a sentence classifier after fusion by several recipes: which start is the best to train from?

    python tests/benchmarks/finetune.py --model ../shared/models/roberta-mini --data sst2.json --out results.jsonl

The data are a JSON object {"train": [[sentence, label], ...], "validation": [...]}. Per recipe, seed and learning
rate one line is appended to --out; lines that are there are not run again. A tenth of the training sentences is held
out: the learning rate and the epoch are chosen on it, never on the validation sentences, whose accuracy is reported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from pathlib import Path

import torch
import torch.multiprocessing
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, calibrate_ntk, fold, fuse_model

LAYERS, WIDTH, EPOCHS, BATCH, LENGTH = "last:8", 0.25, 3, 32, 64
RATES, SEEDS = (5e-5, 1e-4), (0, 1, 2, 3, 4)


def build(recipe: str, stock, sentences, tokenizer):  # type: ignore[no-untyped-def]
    """The model that a recipe makes of a stock classifier: its words are joined by `+`."""
    words = recipe.split("+")
    if words[0] == "unfused":
        return stock
    selection = {"ward": "clusters", "obs": "obs"}[words[0]]
    calibrated = words[0] == "obs" or "output" in words
    refit = "output" if calibrated else "none"
    config = FusionConfig(width=WIDTH, layers=LAYERS, selection=selection, refit=refit, ntk="none")
    fused = fuse_model(stock, config, calibration=sentences[:512] if calibrated else None, tokenizer=tokenizer)
    if "folded" in words:
        fold(fused)
    if "ntk" in words:
        rows = tokenizer(sentences[:32], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        calibrate_ntk(fused, stock, [{"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}])
    return fused


@torch.no_grad()
def accuracy(model, rows, device) -> float:  # type: ignore[no-untyped-def]
    """Accuracy on tokenized rows, in percent."""
    model.eval()
    right = 0
    for start in range(0, len(rows["labels"]), 256):
        part = {name: tensor[start : start + 256].to(device) for name, tensor in rows.items()}
        labels = part.pop("labels")
        right += (model(**part).logits.argmax(-1) == labels).sum().item()
    return 100 * right / len(rows["labels"])


def run(job) -> dict:  # type: ignore[no-untyped-def, type-arg]
    """Fuses and fine-tunes once."""
    options, recipe, seed, rate = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = json.loads(Path(options.data).read_text())
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def rows(pairs):  # type: ignore[no-untyped-def]
        texts, labels = zip(*pairs, strict=True)
        coded = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        return {
            "input_ids": coded.input_ids,
            "attention_mask": coded.attention_mask,
            "labels": torch.tensor(labels),
        }

    order = torch.randperm(len(data["train"]), generator=torch.Generator().manual_seed(0)).tolist()
    fold = len(order) // 10
    held, train = ([data["train"][i] for i in part] for part in (order[:fold], order[fold:]))
    torch.manual_seed(seed)
    stock = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype=torch.float32)
    stock = stock.to(device)
    started = time.perf_counter()
    model = build(recipe, stock, [text for text, _ in train], tokenizer)
    fuse_seconds = time.perf_counter() - started
    train_rows, held_rows, test_rows = rows(train), rows(held), rows(data["validation"])

    steps = EPOCHS * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps * 6 // 100, steps)
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(EPOCHS):
        model.train()
        for chunk in torch.randperm(len(train), generator=generator).split(BATCH):
            batch = {name: tensor[chunk] for name, tensor in train_rows.items()}
            longest = int(batch["attention_mask"].sum(1).max())
            labels = batch.pop("labels").to(device)
            loss = model(
                **{name: tensor[:, :longest].to(device) for name, tensor in batch.items()}, labels=labels
            ).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        history.append((accuracy(model, held_rows, device), accuracy(model, test_rows, device)))
    return {
        "recipe": recipe,
        "seed": seed,
        "lr": rate,
        "held": [round(held, 2) for held, _ in history],
        "dev": [round(dev, 2) for _, dev in history],
        "fuse_seconds": round(fuse_seconds, 2),
        "seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def table(lines: list[dict]) -> None:  # type: ignore[type-arg]
    """Prints a row a recipe: the learning rate is the one with the best mean on the held-out tenth."""
    for recipe in dict.fromkeys(line["recipe"] for line in lines):
        own = [line for line in lines if line["recipe"] == recipe]
        rates = sorted({line["lr"] for line in own})
        held = {rate: statistics.mean(max(line["held"]) for line in own if line["lr"] == rate) for rate in rates}
        chosen = [line for line in own if line["lr"] == max(held, key=held.__getitem__)]
        dev = [line["dev"][line["held"].index(max(line["held"]))] for line in chosen]
        spread = statistics.stdev(dev) if len(dev) > 1 else 0.0
        best = {
            rate: round(statistics.mean(max(line["dev"]) for line in own if line["lr"] == rate), 2) for rate in rates
        }
        mean = statistics.mean(dev)
        print(f"{recipe:20s} lr {chosen[0]['lr']:.0e}  dev {mean:.2f} ± {spread:.2f} ({len(dev)} seeds)  best {best}")


def main() -> None:
    """Runs what is not there yet and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--recipes", default="unfused,ward,obs+ntk,obs,ward+output+ntk,ward+ntk")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    out = Path(options.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["recipe"], line["seed"], line["lr"]) for line in lines}
    jobs = [(options, *job) for job in itertools.product(options.recipes.split(","), SEEDS, RATES) if job not in done]
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(options.processes) as pool:
        for line in pool.imap_unordered(run, jobs):
            lines.append(line)
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    table(lines)


if __name__ == "__main__":
    main()
