"""Fine-tunes an encoder many times after fusion: by power of P, beside rivals, and beside the unfused model.

    python tests/benchmarks/many_runs.py DATA OUT.jsonl --model real-models/all-mpnet-base-v2 \\
        --forms unfused,P-matched,root,folded --tasks cola,stsb,mrpc --rates 5e-5,1e-4 --seeds 10
    python tests/benchmarks/many_runs_table.py OUT.jsonl

DATA is a folder with `TASK/{train,validation}.parquet`; of SST-2 at most 8,000 rows train. The last 8 FFNs go to a
quarter, calibrated on 512 rows of the task; `--fused NAME=FOLDER` adds a form that was fused (and tuned) before, once
for all tasks. After a form may stand `+rows` (calibrated on as many rows as have 65,536 tokens), `+auto` (widths
searched for), `+loss` (in the metric of the loss), `+tuned` (on the original's hidden states for three epochs, before
fine-tuning), and `/VARIANT` of training. Three epochs of 32 rows, and the rest as `hf-mlp-fusion bench glue` trains:
AdamW, 6 % of the steps to the peak, clipped at 1. A tenth of the training rows is held out: the epoch, and in the
table of scores the rate, are chosen on it. Processes share the GPU, which one alone leaves idle most of the time. What
is in OUT.jsonl already is not run again; no run begins after `--seconds`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import tempfile
import time
import warnings
from pathlib import Path

import pandas
import torch
import torch.multiprocessing
from many_runs_table import read
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.bench.glue import GLUE
from hf_mlp_fusion.fusion.enough import TOKENS
from hf_mlp_fusion.metrics import load
from hf_mlp_fusion.training import TARGETS, TuningTrainer

EPOCHS, BATCH, WARMUP, CALIBRATION, WINDOW, LONGEST = 3, 32, 0.06, 512, 20, 128
ROWS, TUNING_EPOCHS = {"sst2": 8000}, 3
RECIPE = FusionConfig(width=0.25, layers="last:8")
FORMS = {
    "P-matched": {"power": 1.0, "ntk": "match"},
    "P": {"power": 1.0, "ntk": "none"},
    "root": {"power": 0.5, "ntk": "none"},
    "fourth": {"power": 0.25, "ntk": "none"},
    "folded": {"power": 0.0, "ntk": "none"},
}
WITH_DATA = ("flap", "wanda", "nirvana")
VARIANTS = {"unclipped": {"clip": 1e9}, "beta2": {"betas": (0.9, 0.98)}, "warmup": {"warmup": 0.2}}


class Rows:
    """Rows of a task: token ids, mask, labels, and the length of each."""

    def __init__(self, table, task, tokenizer, device):  # type: ignore[no-untyped-def]
        texts = [list(table[column]) for column in GLUE[task].texts]
        coded = tokenizer(*texts, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt")
        dtype = torch.float32 if task == "stsb" else torch.long
        self.lengths = coded.attention_mask.sum(1)
        self.ids, self.mask = coded.input_ids.to(device), coded.attention_mask.to(device)
        self.labels = torch.tensor(table.label.to_numpy(), dtype=dtype).to(device)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Rows as a model takes them, cut to the longest.

        Args:
            index: Their numbers, on the CPU.
        """
        longest = int(self.lengths[index].max())
        index = index.to(self.ids.device)
        return {"input_ids": self.ids[index, :longest], "attention_mask": self.mask[index, :longest]}


def fine_tuned(model, rows: dict[str, Rows], task: str, rate: float, seed: int, variant: str):  # type: ignore[no-untyped-def]
    """Trains a model in place; its scores after each epoch, and its smoothed loss curve."""
    settings = {"clip": 1.0, "betas": (0.9, 0.999), "warmup": WARMUP} | VARIANTS.get(variant, {})
    train, metric = rows["train"], load("glue", task)
    per_epoch = len(train) // BATCH
    steps = EPOCHS * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=settings["betas"], weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    losses = []
    scores: dict[str, list] = {"held": [], "dev": [], "same": []}  # type: ignore[type-arg]
    for step in range(steps):
        if step % per_epoch == 0:
            model.train()
            order = torch.randperm(len(train), generator=generator)
        rising = settings["warmup"] * steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / rising, (steps - step) / (steps - rising))
        start = step % per_epoch * BATCH
        index = order[start : start + BATCH]
        loss = model(**train.batch(index), labels=train.labels[index.to(train.labels.device)]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % per_epoch == 0:
            for name in ("held", "dev"):
                value, same = score(metric, task, answers(model, rows[name]), rows[name])
                scores[name].append(round(value, 2))
            scores["same"].append(same)
    curve = torch.stack(losses)[: steps // WINDOW * WINDOW].view(-1, WINDOW).mean(1).tolist()
    return {**scores, "curve": [round(value, 4) for value in curve]}


@torch.no_grad()
def answers(model, rows: Rows) -> Tensor:  # type: ignore[no-untyped-def]
    """The logits of all rows, those of like length together."""
    model.eval()
    order = rows.lengths.argsort()
    logits = torch.cat([model(**rows.batch(index)).logits for index in order.split(256)]).float().cpu()
    return logits[order.argsort()]


@functools.lru_cache(maxsize=1)
def prepared(task: str, model: str, data: Path, device: str) -> dict[str, Rows]:
    """Rows to train on, rows held out of them, and the validation rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    table = pandas.read_parquet(data / task / "train.parquet").sample(frac=1, random_state=0).iloc[: ROWS.get(task)]
    held = len(table) // 10
    parts = {"held": table.iloc[:held], "train": table.iloc[held:]}
    parts["dev"] = pandas.read_parquet(data / task / "validation.parquet")
    return {name: Rows(part, task, tokenizer, device) for name, part in parts.items()}


def unfused(task: str, options, seed: int = 0, folder: str | None = None):  # type: ignore[no-untyped-def]
    """The stock model, or what lies in a folder, with a new head."""
    torch.manual_seed(seed)
    sizes = {"num_labels": 1 if task == "stsb" else 2, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(folder or options.model, **sizes)
    return model.to(options.device).eval()


def reduced(model, form: str, rows: Rows, tokenizer):  # type: ignore[no-untyped-def]
    """What a form or method makes of a model."""
    if form == "unfused":
        return model
    base, *more = form.split("+")
    enough = min(len(rows), int((rows.lengths.cumsum(0) < TOKENS).sum()) + 1)
    batches = [rows.batch(index) for index in torch.arange(enough if "rows" in more else CALIBRATION).split(BATCH)]
    recipe = vars(RECIPE) | FORMS.get(base, {})
    recipe |= {"metric": "loss"} if "loss" in more else {}
    recipe |= {"width": f"auto:{RECIPE.width}"} if "auto" in more else {}
    if base in FORMS:
        fused = fuse_model(model, FusionConfig(**recipe), calibration=batches)
    elif base == "data-free":
        fused = fuse_model(model, RECIPE)
    else:
        fused = reduce_model(model, RECIPE, base, calibration=batches if base in WITH_DATA else None)
    if "tuned" in more:
        tune(fused, model, rows, tokenizer)
    return fused


def tune(fused, model, rows: Rows, tokenizer, **options) -> None:  # type: ignore[no-untyped-def]
    """Trains fused FFNs on what the original computes of the rows."""
    items = [
        {name: part[0].cpu() for name, part in rows.batch(index).items()} for index in torch.arange(len(rows)).split(1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=TUNING_EPOCHS,
            per_device_train_batch_size=16,
            learning_rate=TARGETS[options.get("target", "hidden_states")].learning_rate,
            use_cpu=fused.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collator = DataCollatorWithPadding(tokenizer)
        trainer = TuningTrainer(
            fused, arguments, teacher=model, train_dataset=items, data_collator=collator, **options
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    fused.eval()


def score(metric, task: str, logits: Tensor, rows: Rows) -> tuple[float, bool]:  # type: ignore[no-untyped-def]
    """The task's score in percent, and whether all predictions are the same."""
    predictions = logits[:, 0] if task == "stsb" else logits.argmax(-1)
    found = metric.compute(predictions=predictions.tolist(), references=rows.labels.cpu().tolist())
    value = 100 * sum(found[name] for name in GLUE[task].metrics) / len(GLUE[task].metrics)
    return value if math.isfinite(value) else 0.0, bool(predictions.float().std() < 1e-3 * rows.labels.float().std())


@functools.lru_cache(maxsize=1)
def _start(folder: str):  # type: ignore[no-untyped-def]
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


def run(job):  # type: ignore[no-untyped-def]
    """One run, in a process of its own."""
    options, folder, task, form, rate, seed, end = job
    if time.time() > end:
        return None
    quiet()
    started = time.perf_counter()
    model = copy.deepcopy(_start(folder))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():  # a head drawn from the seed, as stock heads are
        if name.startswith("classifier."):
            drawn = torch.empty(tensor.shape).normal_(0.0, model.config.initializer_range, generator=generator)
            tensor.data.copy_(drawn if name.endswith("weight") else torch.zeros(tensor.shape))
    rows = prepared(task, options.model, options.data, options.device)
    found = fine_tuned(model.to(options.device), rows, task, rate, seed, form.partition("/")[2])
    return {"task": task, "form": form, "rate": rate, "seed": seed, **found, "s": round(time.perf_counter() - started)}


def runs(options):  # type: ignore[no-untyped-def]
    """Makes the runs that are not there yet."""
    end = time.time() + options.seconds
    out = Path(options.out)
    done = {(line["task"], line["form"], line["rate"], line["seed"]) for line in read(out)}

    def note(line) -> None:  # type: ignore[no-untyped-def]
        if line is not None:
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work, context.Pool(options.processes) as pool:
        waiting = []
        for task in options.tasks:
            rows = prepared(task, options.model, options.data, options.device)["train"]
            model, tokenizer = unfused(task, options), AutoTokenizer.from_pretrained(options.model)
            for form in (*options.forms, *options.fused):
                wanted = itertools.product(options.rates, options.seeds)
                todo = [item for item in wanted if (task, form, *item) not in done]
                if not todo or time.time() > end:
                    continue
                folder = f"{work}/{task}-{form.replace('/', '-')}"
                if form in options.fused:
                    start = unfused(task, options, folder=options.fused[form])
                else:
                    start = reduced(model, form.partition("/")[0], rows, tokenizer)
                start.save_pretrained(folder)
                for rate, seed in todo:
                    job = (options, folder, task, form, rate, seed, end)
                    waiting.append(pool.apply_async(run, (job,), callback=note))
        for item in waiting:
            item.get()


def main() -> None:
    """Runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out")
    parser.add_argument("--model", default="real-models/all-mpnet-base-v2")
    parser.add_argument("--forms", type=lambda text: [*filter(None, text.split(","))], default=["unfused", *FORMS])
    parser.add_argument("--fused", type=lambda text: text.split("=", 1), action="append", default=[])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["stsb", "cola", "mrpc"])
    parser.add_argument("--rates", type=lambda text: [*map(float, text.split(","))], default=[1e-4, 5e-5])
    parser.add_argument("--seeds", type=lambda text: list(range(int(text))), default=list(range(10)))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.fused = dict(options.fused)
    quiet()
    runs(options)


def quiet() -> None:
    """No warnings and bars among the tables; products in TF32, as the bench has them."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True


if __name__ == "__main__":
    main()
