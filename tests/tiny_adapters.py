"""Adapters for the tiny models, and a training step for them."""

from __future__ import annotations

import torch
from conftest import model_inputs, tiny_model
from peft import LoraConfig
from transformers import PreTrainedModel

from hf_mlp_fusion import FusionConfig, fuse_model

CONFIG = FusionConfig(width=16, targets="all")
FFN_TARGETS = {
    "bert": ["intermediate.dense", "output.dense"],
    "roberta": ["intermediate.dense", "output.dense"],
    "gpt2": ["c_fc", "mlp.c_proj"],
    "switch_transformers": ["wi", "wo"],
}


def fused_model(family: str, head: type[PreTrainedModel] | None = None, config: FusionConfig = CONFIG, **changes):
    """A tiny fused model, the same at every call."""
    return fuse_model(tiny_model(family, head, **changes), config)


def lora(family: str, **kwargs) -> LoraConfig:
    """LoRA with a family's default targets, unless others are given."""
    return LoraConfig(r=4, fan_in_fan_out=family == "gpt2", **kwargs)


def train(model: torch.nn.Module, steps: int = 2) -> None:
    """Steps large enough to see; the first LoRA step moves B alone, for B starts at zero."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    inputs = model_inputs(model)
    labels = inputs.pop("decoder_input_ids", inputs["input_ids"]).contiguous()
    head = type(model.get_base_model()).__name__
    if "Classification" in head:
        labels = (labels[:, 0] if "Sequence" in head else labels) % 2
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def scaling_matrices(model: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of every P of a model, in order."""
    return [b.clone() for name, b in model.named_buffers() if name.endswith("cluster_sizes")]
