"""MPNet-base and SmolLM2-135M in one shot: what fusion leaves of embeddings and of perplexity, and what it takes.

Usage: python tests/benchmarks/usual_size.py TEXTS [--models real-models] [--device cuda] [--windows 512]. TEXTS is
what `read_texts` takes; a tenth of the texts, by their hash, is measured on and the rest calibrated on. `make models`
builds the models. Prints two tables in Markdown.
"""

import argparse
import functools
import time
import warnings

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_mlp_fusion import FusionConfig, FusionWarning, fuse_model
from hf_mlp_fusion.data import make_batches, read_texts, split_texts
from hf_mlp_fusion.measure import language_loss

RECIPES = {
    "fusion without data": {},
    "calibrated, no kernel match": {"ntk": "none"},
    "calibrated (the default with texts)": {},
}


def timed(function):
    """The result of a function, its seconds, and the most GPU memory that it took, in GB (NaN on a CPU)."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan")


def fused_models(model, batches, widths, layers):
    """Yields each recipe at each width, with what it took."""
    for width in widths:
        for name, options in RECIPES.items():
            config = FusionConfig(width=width, layers=layers, **options)
            data = None if name == "fusion without data" else batches
            fuse = functools.partial(fuse_model, model, config, calibration=data)
            fused, seconds, memory = timed(fuse)
            share = fused.fusion_report.parameters_after / fused.fusion_report.parameters_before
            yield f"{name}, {width}", fused, share, seconds, memory


def smollm2(folder, device, calibration, held_out, windows):
    """Perplexity of windows of 512 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    sizes = {"max_length": 512, "batch_size": 8}
    batches = make_batches(model, tokenizer, calibration, samples=windows // 4, **sizes)
    rows = make_batches(model, tokenizer, held_out, samples=48, **sizes)
    unfused = language_loss(model, rows).perplexity
    print(f"\n| SmolLM2, all FFNs | parameters | perplexity | times | seconds | GPU GB |\n{'| --- ' * 6}|")
    print(f"| unfused | 100 % | {unfused:.2f} | 1 | | |")
    for name, fused, share, seconds, memory in fused_models(model, batches, (0.75, 0.5), "all"):
        found = language_loss(fused, rows).perplexity
        print(f"| {name} | {share:.0%} | {found:,.2f} | {found / unfused:,.2f} | {seconds:.0f} | {memory:.1f} |")


@torch.no_grad()
def mpnet(folder, device, calibration, held_out, windows):
    """Cosine of each sentence's embedding with the original's, and correlation of all likenesses of two sentences."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    batches = make_batches(model, tokenizer, calibration, samples=windows, batch_size=16)
    rows = make_batches(model, tokenizer, held_out, samples=256, batch_size=32)

    def embeddings(one):
        found = []
        for batch in rows:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            mask = batch["attention_mask"][..., None]
            found.append((one(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(found).double(), dim=-1)

    def likenesses(vectors):
        return (vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)]

    before = embeddings(model)
    print(f"\n| MPNet, last 8 of 12 FFNs | parameters | cosine | correlation | seconds | GPU GB |\n{'| --- ' * 6}|")
    for name, fused, share, seconds, memory in fused_models(model, batches, (0.25,), "last:8"):
        after = embeddings(fused)
        cosine = (before * after).sum(-1).mean()
        correlation = torch.corrcoef(torch.stack([likenesses(before), likenesses(after)]))[0, 1]
        print(f"| {name} | {share:.0%} | {cosine:.3f} | {correlation:.3f} | {seconds:.0f} | {memory:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts")
    parser.add_argument("--models", default="real-models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--windows", type=int, default=512, help="rows of texts to calibrate on; a quarter of windows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FusionWarning)
    parts = split_texts(read_texts(arguments.texts))
    mpnet(f"{arguments.models}/all-mpnet-base-v2", arguments.device, *parts, arguments.windows)
    smollm2(f"{arguments.models}/smollm2-135m-instruct", arguments.device, *parts, arguments.windows)
