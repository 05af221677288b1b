"""The demonstration: fuse a real model, save it, load it in a fresh process, and compare it with the original."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..data import load_tokenizer, save_carrying
from ..files import output_folder
from ..fusion import fuse_model
from ..hub import add_stub
from ..measure import Latency, OutputError, latencies, output_error
from ..modeling.loading import load_whole
from ..recipe import FusionConfig, FusionReport

__all__ = ["PAIRS", "DemoResult", "calibration_sentences", "embed", "run_demo"]

PAIRS = (
    ("A man is playing the guitar on stage.", "Somebody performs music in front of people."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The stock market fell sharply today.", "My grandmother bakes excellent bread."),
    ("He parked the car behind the house.", "Photosynthesis turns light into sugar."),
)
"""Sentence pairs: three that mean about the same, two that do not."""


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    Args:
        report: The receipt of the fusion.
        identical: Whether a fresh process, loading the saved folder, computed the same bits.
        latency: Of a forward on the ten sentences, before and after.
        output_error: Of each fused FFN on the sentences.
        similarities: Cosine similarity of each of `PAIRS`, before and after.
    """

    report: FusionReport
    identical: bool
    latency: list[Latency]
    output_error: OutputError
    similarities: list[tuple[float, float]]


def calibration_sentences(count: int = 512) -> list[str]:
    """English sentences that every Python installation brings: those of its help topics.

    Args:
        count: How many.
    """
    from pydoc_data import topics

    prose = re.sub(r"\s+", " ", " ".join(text for _, text in sorted(topics.topics.items())))
    sentences = [part.strip() for part in re.findall(r"[A-Z][^.:;|*`]{40,200}\.", prose)]
    return sorted(set(sentences), key=lambda sentence: hashlib.blake2b(sentence.encode()).digest())[:count]


def run_demo(name_or_path: str, config: FusionConfig, out: Path, *, calibrated: bool = True) -> DemoResult:
    """Fuses a model into a folder and compares.

    Args:
        name_or_path: Folder or Hub id of a text model.
        config: The recipe.
        out: Folder to write; a model folder there is replaced.
        calibrated: Calibrate on sentences of Python's documentation; without, fusion sees no data.
    """
    tokenizer = load_tokenizer(name_or_path)
    model = load_whole(AutoModel, name_or_path, dtype="float32", new_head=True)
    sentences = [sentence for pair in PAIRS for sentence in pair]
    batch = tokenize(tokenizer, sentences)
    calibration = calibration_sentences() if calibrated else None
    fused = fuse_model(model, config, calibration=calibration, tokenizer=tokenizer)
    with output_folder(out, overwrite=True) as folder:
        save_carrying(fused, name_or_path, folder)
        add_stub(folder)
    before, after = embed(model, batch), embed(fused, batch)
    return DemoResult(
        report=fused.fusion_report,
        identical=torch.equal(_embed_in_fresh_process(out, batch), after),
        latency=latencies([model, fused], batch),
        output_error=output_error(model, fused, [batch]),
        similarities=list(zip(_pair_similarities(before), _pair_similarities(after), strict=True)),
    )


def tokenize(tokenizer: Any, sentences: Sequence[str]) -> dict[str, Tensor]:
    """Tokenizes sentences into one padded batch."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(list(sentences), padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def embed(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Sentence embeddings: the last hidden state, averaged over tokens, of length one.

    Args:
        model: A text model; of an encoder-decoder, the encoder is used.
        batch: `input_ids` and `attention_mask`, `[batch, tokens]`.

    Returns:
        `[batch, hidden size]`.
    """
    encoder = model.eval().get_encoder() if model.config.is_encoder_decoder else model.eval()
    hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def _pair_similarities(embeddings: Tensor) -> list[float]:
    return (embeddings[0::2] * embeddings[1::2]).sum(-1).tolist()


# Memory-mapped weights may be unaligned, which changes the last bit of some matrix products.
_FRESH = """
import sys
import hf_mlp_fusion
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from hf_mlp_fusion.cli.demonstration import embed
folder, batch, out = sys.argv[1:]
save_file({"embeddings": embed(AutoModel.from_pretrained(folder, disable_mmap=True), load_file(batch))}, out)
"""


def _embed_in_fresh_process(folder: Path, batch: dict[str, Tensor]) -> Tensor:
    with tempfile.TemporaryDirectory() as temporary:
        inputs, outputs = Path(temporary, "inputs"), Path(temporary, "outputs")
        save_file(batch, inputs)
        command = [sys.executable, "-c", _FRESH, str(folder), str(inputs), str(outputs)]
        subprocess.run(command, check=True, capture_output=True)
        return load_file(outputs)["embeddings"]
