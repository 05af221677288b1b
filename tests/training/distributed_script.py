"""Trains fused models with Trainer in one or several processes, and prints a line of JSON for each: what came of it.

    torchrun --nproc_per_node 2 tests/training/distributed_script.py ddp:gpt2 fsdp+bf16:gpt2 fsdp:PATH --out /tmp/runs

A run is a way to share the work, `+bf16` if wanted, and a tiny family (`FAMILIES`) or the folder of a stock model.
Ways: `ddp`; `fsdp`, FSDP2 by accelerate, which has it on GPUs alone; `sharded`, FSDP2 by transformers itself, at
loading. Each process takes a GPU where there are any, else the CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.modeling.loading import load_stock_model

_BERT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FAMILIES = {
    "roberta": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**_BERT)),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=99, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
    ),
    "switch_transformers": (
        transformers.SwitchTransformersForConditionalGeneration,
        transformers.SwitchTransformersConfig(
            vocab_size=99,
            d_model=16,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=2,
            num_experts=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            dropout_rate=0.0,
            router_jitter_noise=0.0,
            decoder_start_token_id=0,
        ),
    ),
}
STEPS, ROWS = 4, 8


def fused_model(source: str) -> PreTrainedModel:
    """A tiny fused model of a family with random weights, or a stock model from a folder, fused; always the same."""
    if source not in FAMILIES:
        return fuse_model(load_stock_model(source, dtype="float32"), FusionConfig(width=0.25))
    torch.manual_seed(0)
    head, config = FAMILIES[source]
    return fuse_model(head(config), FusionConfig(width=16))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """The arguments of every run: the batch of a step is the same, however many processes share it."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": STEPS,
        "save_steps": STEPS // 2,
        "logging_steps": 1,
        "per_device_train_batch_size": ROWS // processes,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    return TrainingArguments(**(values | changes))


def train(model: PreTrainedModel, folder: Path, resume: Path | None = None, **changes: Any) -> Trainer:
    """Trains a model on rows that spell themselves, or a classifier on the parity of their first token."""
    # transformers takes any forward(**kwargs) for one that divides its loss by the tokens of all processes. Those of
    # causal language models do; the loss and the gradients of others would grow with the number of processes.
    model.accepts_loss_kwargs = "LMHead" in type(model).__name__
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, min(90, model.config.vocab_size), (2 * ROWS, 32), generator=generator)
    labels = ids[:, 0] % 2 if "Classification" in type(model).__name__ else ids
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=rows)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def sharded_model(source: str, folder: Path, *, bf16: bool) -> PreTrainedModel:
    """Loads a fused model in shards, a part of each of its layers in each process."""
    from transformers.distributed.configuration_utils import DistributedConfig

    model = fused_model(source)
    if dist.get_rank() == 0:
        model.save_pretrained(folder)
    dist.barrier()
    layers = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    config = DistributedConfig(
        fsdp_size=dist.get_world_size(),
        fsdp_plan={re.sub(r"\d+", "*", name): "free_full_weight" for name in layers},
        fsdp_mixed_precision=bf16,
    )
    return type(model).from_pretrained(folder, distributed_config=config)


def whole_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All tensors of a model, those in shards put together. Every process must call it."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()
        for name, tensor in model.state_dict().items()
    }


def everywhere(value: bool) -> bool:
    """Whether something holds in every process."""
    if not dist.is_initialized():
        return value
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return all(values)


def of_first(value: Any) -> Any:
    """What the first process has."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of two state dicts."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def run(source: str, way: str, out: Path, *, bf16: bool) -> dict[str, Any]:
    """Trains one model, resumes it from its middle, and loads its last checkpoint."""
    original = fused_model(source)
    before = {name: tensor for name, tensor in original.state_dict().items() if is_scaling(name)}
    changes: dict[str, Any] = {"bf16": bf16}
    if way == "fsdp":
        layers = [name for name in original._no_split_modules if not name.endswith("Embeddings")]
        # Embeddings among them (RoBERTa) make accelerate 1.15 shard the word embeddings twice.
        changes |= {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": layers}}
    elif way == "sharded":
        changes = {"save_only_model": True}  # Trainer does not resume such models; the model itself casts to bfloat16

    def start() -> PreTrainedModel:
        return sharded_model(source, out / "source", bf16=bf16) if way == "sharded" else fused_model(source)

    trainer = train(start(), out / "run", **changes)
    state = whole_state(trainer.model)
    scalings = {name: tensor for name, tensor in state.items() if is_scaling(name)}
    checkpoint = out / "run" / f"checkpoint-{STEPS}"
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if way == "sharded":
        resumed = restored(trainer.model, start())
    else:
        middle = out / "run" / f"checkpoint-{STEPS // 2}"
        resumed = train(start(), out / "resumed", resume=middle, **changes).model
    return {
        "class": type(trainer.model).__name__,
        "device": trainer.args.device.type,
        "processes": trainer.args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "shards": sum(isinstance(tensor, DTensor) for tensor in trainer.model.state_dict().values()),
        "scalings": len(before),
        "scalings kept": everywhere(same(scalings, before)),
        "scalings stored": sorted({stored.get(name, "nowhere") for name in before}),
        "weights stored": sorted({dtype for name, dtype in stored.items() if not is_scaling(name)}),
        "processes agree": everywhere(same(state, of_first(state))),
        "receipt": (checkpoint / "fusion_report.json").is_file(),
        "checkpoint off by": difference(type(original).from_pretrained(checkpoint).state_dict(), state),
        "resumed off by": difference(whole_state(resumed), state),
    }


def restored(trained: PreTrainedModel, fresh: PreTrainedModel) -> PreTrainedModel:
    """Gives a sharded model another's weights by way of the first process, as accelerate saves and resumes."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(trained, options=options)
    set_model_state_dict(fresh, state if dist.get_rank() == 0 else {}, options=options)
    return fresh


def is_scaling(name: str) -> bool:
    """Whether a tensor is a P."""
    return name.endswith("cluster_sizes")


def main() -> None:
    """Does the runs one after another; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="WAY[+bf16]:MODEL")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    arguments(options.out)  # starts the process group
    for name in options.runs:
        way, source = name.split(":", 1)
        out = options.out / f"{way}-{Path(source).name}"
        try:
            result = run(source, way.removesuffix("+bf16"), out, bf16=way.endswith("+bf16"))
        except Exception as error:
            logging.exception("%s failed", name)
            result = {"error": f"{type(error).__name__}: {error}"}
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(json.dumps({"run": name, **result}), flush=True)  # noqa: T201
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
