"""TRL on a saved fused model: it loads the policy by its path, and makes the reference of it."""

import pytest
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model

trl = pytest.importorskip("trl", reason="trl is not installed: its trainers are not tried")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

TEXTS = tiny_texts(8)
PAIRS = {"prompt": TEXTS[:4], "chosen": TEXTS[4:], "rejected": TEXTS[:4][::-1]}
SETTINGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


@pytest.fixture
def folder(tmp_path):
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


def test_configs_have_no_auto_map_of_their_own(folder):
    assert "auto_map" not in (folder / "config.json").read_text()


def train(name, folder, columns, **changes):
    from datasets import Dataset

    settings = getattr(trl, f"{name}Config")(str(folder.parent / "run"), **(SETTINGS | changes))
    trainer = getattr(trl, f"{name}Trainer")(
        str(folder),
        args=settings,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tiny_tokenizer("gpt2"),
        **(
            {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]}
            if name == "GRPO"
            else {}
        ),
    )
    assert trainer.train().global_step == 1
    return trainer


def test_supervised_fine_tuning(folder):
    assert type(train("SFT", folder, {"text": TEXTS}, max_length=16).model).__name__ == "FusedGPT2LMHeadModel"


def test_preferences_with_a_reference_of_its_own_making(folder):
    trainer = train("DPO", folder, PAIRS, max_length=32)
    assert type(trainer.ref_model).__name__ == "FusedGPT2LMHeadModel"


def test_single_preferences(folder):
    columns = {"prompt": TEXTS[:4], "completion": TEXTS[4:], "label": [True, False, True, False]}
    assert type(train("KTO", folder, columns, max_length=32).ref_model).__name__ == "FusedGPT2LMHeadModel"


def test_group_relative_policy(folder):
    train("GRPO", folder, {"prompt": TEXTS[:4]}, num_generations=2, max_completion_length=4)
