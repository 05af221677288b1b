"""How fused models of a usual size train beside their originals: P, √P and P folded, kernels matched and not.

Usage: python tests/benchmarks/dynamics.py DATA [--models real-models] [--device cuda] [--steps 16] [--rates 2e-5]
[--seeds 5] [--subjects mpnet].
DATA is a folder with `cola/train.parquet` (sentence, label) and `webnlg/train.parquet` (triples, references). Of MPNet
with a new head for CoLA the last 8 of 12 FFNs are fused to a quarter, of SmolLM2 on WebNLG all to one half. Prints a
table of each in Markdown: how far W1 and W2 move an FFN as multiples of the unfused model's, on rows held out; the
how curved their way was, likewise;
the mean gap of the loss curves; the critical rate.
"""

import argparse
import copy
import statistics
import warnings
from pathlib import Path

import pandas
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_mlp_fusion import FusionConfig, FusionWarning, calibrate_ntk, fuse_model
from hf_mlp_fusion.measure import dynamics
from hf_mlp_fusion.modeling.power import set_powers

CALIBRATION, BATCH = 512, 32  # rows
CRITICAL = ("critical_rate", "original_critical_rate")
COLUMNS = {"inner": 2, "outer": 2, "curvature": 2, "loss_gap": 4}
FORMS = {"P": 1.0, "√P": 0.5, "P folded": 0.0}


def with_p(fused, power):
    """A copy with another power of the cluster sizes apart: the same function."""
    changed = copy.deepcopy(fused)
    set_powers(changed, power)
    return changed


def mpnet(folder, data, device, seed):
    """The model with a new head, rows to calibrate on, and labelled batches."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = pandas.read_parquet(data / "cola" / "train.parquet").sample(frac=1, random_state=seed)

    def batches(rows):
        for start in range(0, len(rows), BATCH):
            part = rows.iloc[start : start + BATCH]
            batch = tokenizer(list(part.sentence), padding=True, truncation=True, max_length=64, return_tensors="pt")
            yield {**batch, "labels": torch.tensor(part.label.to_numpy())}

    return (
        model.to(device).eval(),
        *both(batches, table),
        FusionConfig(width=0.25, layers="last:8", ntk="none", power=1),
    )


def smollm2(folder, data, device, seed):
    """The same of a language model that writes a sentence for triples."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = pandas.read_parquet(data / "webnlg" / "train.parquet").sample(frac=1, random_state=seed)

    def batches(rows):
        for start in range(0, len(rows), BATCH // 2):
            found = []
            for _, row in rows.iloc[start : start + BATCH // 2].iterrows():
                prompt = tokenizer("; ".join(row.triples) + " =>")["input_ids"][-90:]
                answer = tokenizer(f" {row.references[0]}{tokenizer.eos_token}")["input_ids"][:60]
                found.append((prompt + answer, [-100] * len(prompt) + answer))
            longest = max(len(ids) for ids, _ in found)
            fills = [longest - len(ids) for ids, _ in found]
            yield {
                "input_ids": torch.tensor([ids + [0] * fill for (ids, _), fill in zip(found, fills, strict=True)]),
                "attention_mask": torch.tensor([[1] * (longest - fill) + [0] * fill for fill in fills]),
                "labels": torch.tensor(
                    [labels + [-100] * fill for (_, labels), fill in zip(found, fills, strict=True)]
                ),
            }

    return model.to(device).eval(), *both(batches, table), FusionConfig(width=0.5, ntk="none", power=1)


def both(batches, table):
    """Rows to calibrate on, unlabelled, and labelled batches of others."""
    calibration = [
        {name: tensor for name, tensor in batch.items() if name != "labels"}
        for batch in batches(table.iloc[:CALIBRATION])
    ]
    return calibration, batches(table.iloc[CALIBRATION:])


def measure(title, subject, arguments):
    """Prints the table of a model: mean and spread over seeds, of the head, the rows and their order."""
    found = {}
    for seed in range(arguments.seeds):
        model, calibration, training, config = subject(seed)
        batches = [next(training) for _ in range(arguments.steps + 1)]
        fused = fuse_model(model, config, calibration=calibration)
        forms = {name: with_p(fused, power) for name, power in FORMS.items()}
        calibrate_ntk(fused, model, batches[:1])
        for rate in arguments.rates:
            for name, form in {"P, kernels matched": fused, **forms}.items():
                run = dynamics(model, form, batches, learning_rate=rate, seed=seed)
                found.setdefault((rate, name), []).append(run)
    print(f"\n{title}, {arguments.steps} steps, {arguments.seeds} seeds\n")
    print("| form | rate | W1 | W2 | curvature | curve's gap | critical rate | unfused |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for (rate, name), runs in found.items():
        cells = [told([getattr(run, part) for run in runs], places) for part, places in COLUMNS.items()]
        critical = [told([getattr(run, part) for run in runs], 5) for part in CRITICAL]
        print(f"| {name} | {rate:g} | {' | '.join(cells + critical)} |", flush=True)


def told(values, places):
    """Mean and spread."""
    spread = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{places}f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", type=Path, default=Path("real-models"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-5, 1e-4])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--subjects", nargs="+", choices=["mpnet", "smollm2"], default=["mpnet", "smollm2"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FusionWarning)
    data, device = arguments.data, arguments.device
    encoder, language = (arguments.models / name for name in ("all-mpnet-base-v2", "smollm2-135m-instruct"))
    if "mpnet" in arguments.subjects:
        measure("MPNet, CoLA", lambda seed: mpnet(encoder, data, device, seed), arguments)
    if "smollm2" in arguments.subjects:
        measure("SmolLM2, WebNLG", lambda seed: smollm2(language, data, device, seed), arguments)
