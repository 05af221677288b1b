"""Other people's training loops on fused models: a plain accelerate loop, and trl's SFTTrainer."""

import copy

import pytest
import torch
from accelerate import Accelerator
from conftest import first_output, tiny_model
from safetensors.torch import load_file
from tiny_text import tiny_texts, tiny_tokenizer
from tuning_rows import tuning_rows

from hf_mlp_fusion import FusedMLP, FusionConfig, fuse_model

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")


def cluster_sizes(model):
    return [module.cluster_sizes.clone() for module in model.modules() if isinstance(module, FusedMLP)]


def test_a_plain_accelerate_loop(tmp_path):
    """Accumulates, saves its state half-way, and gives the same when it goes on from there."""
    fused = fuse_model(tiny_model("gpt2"), FusionConfig(width=16))
    sizes = cluster_sizes(fused)

    def prepared(model):
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        loader = torch.utils.data.DataLoader(tuning_rows(model), batch_size=4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return accelerator, *accelerator.prepare(model, optimizer, loader)

    def run(accelerator, model, optimizer, loader):
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch, labels=batch["input_ids"]).loss)
                optimizer.step()
                optimizer.zero_grad()

    accelerator, *parts = prepared(copy.deepcopy(fused))
    run(accelerator, *parts)
    accelerator.save_state(tmp_path / "state")
    run(accelerator, *parts)
    model = accelerator.unwrap_model(parts[0])

    saved = load_file(tmp_path / "state" / "model.safetensors")
    assert sum(name.endswith("cluster_sizes") for name in saved) == len(sizes) == 3
    resumed, *others = prepared(copy.deepcopy(fused))
    others[0].get_submodule("transformer.h.0.mlp.act").cluster_sizes.copy_(sizes[0].flip(0))  # to be loaded again
    resumed.load_state(tmp_path / "state")
    run(resumed, *others)
    assert torch.equal(first_output(resumed.unwrap_model(others[0])), first_output(model))
    assert not torch.equal(first_output(model), first_output(fused))
    for own, other, before in zip(cluster_sizes(model), cluster_sizes(others[0]), sizes, strict=True):
        assert torch.equal(own, before)
        assert torch.equal(other, before)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # trl 1.16 sets it
def test_trl_fine_tunes_a_fused_model(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: supervised fine-tuning is not tried")
    from datasets import Dataset

    fused = fuse_model(tiny_model("gpt2"), FusionConfig(width=16))
    before, sizes = first_output(fused), cluster_sizes(fused)
    trainer = trl.SFTTrainer(
        fused,
        trl.SFTConfig(
            str(tmp_path / "run"),
            max_steps=3,
            per_device_train_batch_size=4,
            max_length=16,
            learning_rate=1e-3,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"text": tiny_texts()}),
        processing_class=tiny_tokenizer("gpt2"),
    )
    assert trainer.train().global_step == 3
    trainer.save_model(tmp_path / "saved")
    after = first_output(fused)
    assert not torch.allclose(after, before)
    assert all(torch.equal(*pair) for pair in zip(cluster_sizes(fused), sizes, strict=True))
    loaded = type(fused).from_pretrained(tmp_path / "saved", disable_mmap=True)
    assert torch.equal(first_output(loaded), after)
    assert all(torch.equal(*pair) for pair in zip(cluster_sizes(loaded), sizes, strict=True))
