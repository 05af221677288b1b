"""What more calibration rows are worth: the error of an encoder's last hidden state, as a share of its variance.

    python tests/benchmarks/calibration_tokens.py DATA --model real-models/all-mpnet-base-v2 [--rows 512 2048 8000]

DATA is a folder with `cola/{train,validation}.parquet`. The last 8 FFNs go to a quarter, calibrated on so many of the
training sentences; the error is that on 512 validation sentences, of tokens that are no padding.
"""

import argparse
import warnings
from pathlib import Path

import pandas
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model


def main() -> None:
    """Prints a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="real-models/all-mpnet-base-v2")
    parser.add_argument("--rows", nargs="+", type=int, default=[512, 2048, 8000])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModel.from_pretrained(options.model, dtype=torch.float32).to(options.device).eval()
    train = pandas.read_parquet(options.data / "cola" / "train.parquet").sample(frac=1, random_state=0).sentence
    held_out = pandas.read_parquet(options.data / "cola" / "validation.parquet").sentence[:512]

    def batches(texts):  # type: ignore[no-untyped-def]
        for start in range(0, len(texts), 32):
            part = list(texts[start : start + 32])
            yield {**tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt")}

    @torch.no_grad()
    def states(one) -> torch.Tensor:  # type: ignore[no-untyped-def]
        found = []
        for batch in batches(held_out):
            batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
            found.append(one(**batch).last_hidden_state[batch["attention_mask"].bool()])
        return torch.cat(found).double()

    wanted = states(model)
    for rows in options.rows:
        texts = train[len(train) // 10 :][:rows]
        data = list(batches(texts))
        tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
        fused = fuse_model(model, FusionConfig(width=0.25, layers="last:8"), calibration=data)
        error = (states(fused) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
        print(f"{len(texts):,} rows, {tokens:,} tokens: {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
