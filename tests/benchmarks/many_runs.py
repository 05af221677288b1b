"""Fine-tunes an encoder many times after fusion: by power of P, beside rivals, and beside the unfused model.

    python tests/benchmarks/many_runs.py DATA OUT.jsonl --model real-models/all-mpnet-base-v2 \\
        --forms unfused,P-matched,root,folded --tasks cola,stsb,mrpc --rates 5e-5,1e-4 --seeds 10
    python tests/benchmarks/many_runs.py --table OUT.jsonl

DATA is a folder with `TASK/{train,validation}.parquet`. The last 8 FFNs go to a quarter, calibrated on 512 rows of the
task; three epochs of 32 rows, and the rest as `hf-mlp-fusion bench glue` trains: AdamW, 6 % of the steps to the peak,
clipped at 1. A tenth of the training rows is held out: the epoch, and in the table of scores the rate, are chosen on
it. Whole steps are captured as CUDA graphs and four seeds run side by side, so that a run takes seconds. What is in
OUT.jsonl already is not run again; runs in the order of the arguments until `--seconds` are over.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import statistics
import time
import warnings
from collections import defaultdict
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.bench.glue import GLUE
from hf_mlp_fusion.metrics import load

EPOCHS, BATCH, WARMUP, CALIBRATION, SLOTS, WINDOW = 3, 32, 0.06, 512, 4, 20
LENGTHS = (32, 64, 128)
RECIPE = FusionConfig(width=0.25, layers="last:8")
FORMS = {
    "P-matched": {"power": 1.0, "ntk": "match"},
    "P": {"power": 1.0, "ntk": "none"},
    "root": {"power": 0.5, "ntk": "none"},
    "folded": {"power": 0.0, "ntk": "none"},
}
VARIANTS = {"unclipped": {"clip": 1e9}, "beta2": {"betas": (0.9, 0.98)}, "warmup": {"warmup": 0.2}}


class Rows:
    """Rows of a task on the device: token ids, mask, labels, and the length of each."""

    def __init__(self, table, task, tokenizer, device):  # type: ignore[no-untyped-def]
        texts = [list(table[column]) for column in GLUE[task].texts]
        coded = tokenizer(*texts, padding="max_length", truncation=True, max_length=LENGTHS[-1], return_tensors="pt")
        self.ids, self.mask = coded.input_ids.to(device), coded.attention_mask.to(device)
        dtype = torch.float32 if task == "stsb" else torch.long
        self.labels = torch.tensor(table.label.to_numpy(), dtype=dtype, device=device)
        self.lengths = coded.attention_mask.sum(1)

    def __len__(self) -> int:
        return len(self.lengths)


class Slot:
    """A model that is trained over and over: its steps are captured once, then weights are put back between runs."""

    def __init__(self, model, train: Rows, evaluated: dict[str, Rows], clip=1.0, betas=(0.9, 0.999), warmup=WARMUP):  # type: ignore[no-untyped-def]
        self.model, self.train, self.evaluated = model, train, evaluated
        self.clip, self.warmup = clip, warmup
        self.steps = EPOCHS * (len(train) // BATCH)
        device = train.ids.device
        self.on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.on_gpu else None
        self.rate = torch.zeros((), device=device)
        self.rates = torch.zeros(self.steps, device=device)
        self.losses = torch.zeros(self.steps, device=device)
        self.order = torch.zeros(self.steps, BATCH, dtype=torch.long, device=device)
        self.counter = torch.zeros(1, dtype=torch.long, device=device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.rate, betas=betas, weight_decay=0.01, fused=self.on_gpu, capturable=self.on_gpu
        )
        self.graphs: dict[object, torch.cuda.CUDAGraph] = {}
        self.logits = {
            name: torch.zeros(len(rows), model.config.num_labels, device=device) for name, rows in evaluated.items()
        }
        self.place = torch.zeros(256, dtype=torch.long, device=device)
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None

    def begin(self, state, rate: float, seed: int) -> None:  # type: ignore[no-untyped-def]
        """Puts weights and optimizer back, and draws the order of the rows."""
        with torch.no_grad():
            own = self.model.state_dict()
            for name, tensor in state.items():
                own[name].copy_(tensor)
            for values in self.optimizer.state.values():
                for tensor in values.values():
                    tensor.zero_()
        generator = torch.Generator().manual_seed(seed)
        count = len(self.train)
        epochs = [torch.randperm(count, generator=generator)[: count // BATCH * BATCH] for _ in range(EPOCHS)]
        order = torch.cat(epochs).view(-1, BATCH)
        longest = self.train.lengths[order].max(1).values.tolist()
        self.cuts = [next(length for length in LENGTHS if length >= most) for most in longest]
        self.order.copy_(order)
        rising = self.warmup * self.steps
        peak = [min((step + 1) / rising, (self.steps - step) / (self.steps - rising)) for step in range(self.steps)]
        self.rates.copy_(torch.tensor(peak) * rate)
        self.counter.zero_()
        torch.cuda.manual_seed(seed) if self.on_gpu else torch.manual_seed(seed)

    def _train(self, length: int) -> None:
        index = self.order.index_select(0, self.counter)[0]
        self.rate.copy_(self.rates.index_select(0, self.counter)[0])
        ids, mask = (part.index_select(0, index)[:, :length] for part in (self.train.ids, self.train.mask))
        labels = self.train.labels.index_select(0, index)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(input_ids=ids, attention_mask=_additive(mask), labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=True)
        self.optimizer.step()
        self.losses.index_copy_(0, self.counter, loss.detach()[None])
        self.counter.add_(1)

    @torch.no_grad()
    def _evaluate(self, name: str, length: int) -> None:
        rows = self.evaluated[name]
        ids, mask = (part.index_select(0, self.place)[:, :length] for part in (rows.ids, rows.mask))
        self.logits[name].index_copy_(0, self.place, self.model(input_ids=ids, attention_mask=_additive(mask)).logits)

    def run(self, step: int) -> None:
        """A step, without waiting for it."""
        self._replay(self.cuts[step], functools.partial(self._train, self.cuts[step]), training=True)

    def evaluate(self) -> dict[str, Tensor]:
        """Logits of all rows."""
        for name, rows in self.evaluated.items():
            length = next(length for length in LENGTHS if length >= int(rows.lengths.max()))
            for start in range(0, len(rows), 256):
                with self._own_stream():
                    self.place.copy_(torch.arange(start, start + 256).clamp_max(len(rows) - 1))
                self._replay((name, length), functools.partial(self._evaluate, name, length), training=False)
        if self.on_gpu:
            torch.cuda.synchronize()
        return {name: logits.float().cpu() for name, logits in self.logits.items()}

    def _own_stream(self):  # type: ignore[no-untyped-def]
        return torch.cuda.stream(self.stream) if self.on_gpu else contextlib.nullcontext()

    def _replay(self, key, body, *, training: bool) -> None:  # type: ignore[no-untyped-def]
        if key not in self.graphs:
            self.model.train(training)
            if not self.on_gpu:
                body()
                return
            self._capture(key, body)
        with self._own_stream():
            self.graphs[key].replay()

    def _capture(self, key, body) -> None:  # type: ignore[no-untyped-def]
        kept = [tensor.clone() for tensor in self._changing()]
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            body()  # which makes the optimizer's state, and what libraries make on first use
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            body()
        fresh = len(kept) < len(self._changing())
        with torch.no_grad():
            for tensor, before in zip(self._changing(), kept, strict=False):
                tensor.copy_(before)
            if fresh:
                for values in self.optimizer.state.values():
                    for tensor in values.values():
                        tensor.zero_()
        torch.cuda.synchronize()
        self.graphs[key] = graph

    def _changing(self) -> list[Tensor]:
        states = [tensor for values in self.optimizer.state.values() for tensor in values.values()]
        return [*self.model.parameters(), self.counter, self.losses, *self.logits.values(), *states]


def _additive(mask: Tensor) -> Tensor:
    """A mask that needs no look at its values, which a capture could not take."""
    lowest = torch.finfo(torch.float32).min
    return ((1.0 - mask.float()) * lowest)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def prepared(task: str, options):  # type: ignore[no-untyped-def]
    """Training and evaluation rows, the unfused model, and batches to calibrate on."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    table = pandas.read_parquet(options.data / task / "train.parquet").sample(frac=1, random_state=0)
    held = len(table) // 10
    parts = {"held": table.iloc[:held], "train": table.iloc[held:]}
    parts["dev"] = pandas.read_parquet(options.data / task / "validation.parquet")
    rows = {name: Rows(part, task, tokenizer, options.device) for name, part in parts.items()}
    torch.manual_seed(0)
    labels = 1 if task == "stsb" else 2
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels, dtype=torch.float32)
    some = rows["train"]
    batches = []
    for start in range(0, CALIBRATION, BATCH):
        longest = int(some.lengths[start : start + BATCH].max())
        part = {"input_ids": some.ids, "attention_mask": some.mask}
        batches.append({name: tensor[start : start + BATCH, :longest] for name, tensor in part.items()})
    return rows, model.to(options.device).eval(), batches


def reduced(model, form: str, batches):  # type: ignore[no-untyped-def]
    """What a form or method makes of a model."""
    if form == "unfused":
        return model
    config = FusionConfig(**{**vars(RECIPE), **FORMS.get(form, {})})
    if form in FORMS:
        return fuse_model(model, config, calibration=batches)
    if form == "data-free":
        return fuse_model(model, RECIPE)
    return reduce_model(model, RECIPE, form, calibration=batches if form in ("flap", "wanda", "nirvana") else None)


def start_of(model, seed: int) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """Weights with a head drawn from a seed, as stock heads are."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if name.startswith("classifier."):
            drawn = torch.empty(tensor.shape).normal_(0.0, model.config.initializer_range, generator=generator)
            state[name] = drawn if name.endswith("weight") else torch.zeros(tensor.shape)
    return state


def score(metric, task: str, logits: Tensor, rows: Rows) -> tuple[float, bool]:  # type: ignore[no-untyped-def]
    """The task's score in percent, and whether all predictions are the same."""
    predictions = logits[:, 0] if task == "stsb" else logits.argmax(-1)
    found = metric.compute(predictions=predictions.tolist(), references=rows.labels.cpu().tolist())
    value = 100 * sum(found[name] for name in GLUE[task].metrics) / len(GLUE[task].metrics)
    return value if math.isfinite(value) else 0.0, bool(predictions.float().std() < 1e-3 * rows.labels.float().std())


def runs(options):  # type: ignore[no-untyped-def]
    """Makes the runs that are not there yet."""
    began = time.monotonic()
    out = Path(options.out)
    lines = read(out)
    done = {(line["task"], line["form"], line["rate"], line["seed"]) for line in lines}
    for task in options.tasks:
        rows, model, batches = prepared(task, options)
        metric = load("glue", task)
        evaluated = {name: rows[name] for name in ("held", "dev")}
        for form in options.forms:
            wanted = list(itertools.product(options.rates, options.seeds))
            if all((task, form, rate, seed) in done for rate, seed in wanted):
                continue
            name, _, variant = form.partition("/")
            fused = reduced(model, name, batches)
            slots = [
                Slot(copy.deepcopy(fused), rows["train"], evaluated, **VARIANTS.get(variant, {}))
                for _ in range(min(SLOTS, len(options.seeds)))
            ]
            for rate in options.rates:
                todo = [seed for seed in options.seeds if (task, form, rate, seed) not in done]
                for start in range(0, len(todo), len(slots)):
                    if time.monotonic() - began > options.seconds:
                        return
                    group = list(zip(slots, todo[start : start + len(slots)], strict=False))
                    for line in together(group, fused, metric, task, form, rate, evaluated):
                        with out.open("a") as file:
                            file.write(json.dumps(line) + "\n")
            del slots, fused
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def together(group, fused, metric, task, form, rate, evaluated):  # type: ignore[no-untyped-def]
    """Some seeds side by side."""
    started = time.perf_counter()
    for slot, seed in group:
        slot.begin(start_of(fused, seed), rate, seed)
    scores: dict[int, dict[str, list]] = {seed: {"held": [], "dev": [], "same": []} for _, seed in group}  # type: ignore[type-arg]
    steps = group[0][0].steps
    for step in range(steps):
        for slot, _ in group:
            slot.run(step)
        if (step + 1) % (steps // EPOCHS) == 0:
            for slot, seed in group:
                for name, logits in slot.evaluate().items():
                    value, same = score(metric, task, logits, evaluated[name])
                    scores[seed][name].append(round(value, 2))
                    if name == "dev":
                        scores[seed]["same"].append(same)
    seconds = round((time.perf_counter() - started) / len(group), 1)
    for slot, seed in group:
        curve = slot.losses[: steps // WINDOW * WINDOW].view(-1, WINDOW).mean(1).tolist()
        curve = [round(value, 4) for value in curve]
        yield {"task": task, "form": form, "rate": rate, "seed": seed, **scores[seed], "curve": curve, "s": seconds}


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
    print("\n| form | " + " | ".join(sorted({line["task"] for line in lines})) + " | mean | of unfused |")
    chosen: dict[str, dict[str, float]] = defaultdict(dict)
    for task, form in dict.fromkeys((line["task"], line["form"]) for line in lines):
        groups = [own for (known, other, _), own in kept.items() if (known, other) == (task, form)]
        top = max(groups, key=lambda own: statistics.mean(max(line["held"]) for line in own))
        chosen[form][task] = statistics.mean(map(best, top))
    for form, scores in chosen.items():
        whole = [scores[task] / chosen["unfused"][task] for task in scores if task in chosen.get("unfused", {})]
        share = f"{100 * statistics.mean(whole):.1f} %" if whole else ""
        cells = " | ".join(f"{scores[task]:.2f}" if task in scores else "" for task in sorted({t for t, *_ in kept}))
        print(f"| {form} | {cells} | {statistics.mean(scores.values()):.2f} | {share} |")


def _paired(line, unfused) -> bool:  # type: ignore[no-untyped-def]
    return (line["task"], line["rate"], line["seed"]) in unfused


def main() -> None:
    """Runs, or prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--table", nargs="+", type=Path)
    parser.add_argument("--model", default="real-models/all-mpnet-base-v2")
    parser.add_argument("--forms", type=lambda text: text.split(","), default=["unfused", *FORMS])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["stsb", "cola", "mrpc"])
    parser.add_argument("--rates", type=lambda text: [*map(float, text.split(","))], default=[1e-4, 5e-5])
    parser.add_argument("--seeds", type=lambda text: list(range(int(text))), default=list(range(10)))
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.table:
        table([line for path in options.table for line in read(path)])
        return
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = True
    runs(options)


if __name__ == "__main__":
    main()
