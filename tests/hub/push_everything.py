"""Pushes tiny fused models to the Hub that HF_ENDPOINT names, in every way there is, and saves what they compute.

Usage: python push_everything.py FOLDER
"""

import sys
from pathlib import Path

import peft
import transformers
from conftest import first_output, tiny_model
from datasets import Dataset
from huggingface_hub import HfApi
from safetensors.torch import save_file
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.hub import FusionCardMixin, push_folder

FOLDER = Path(sys.argv[1])
FAMILIES = ("roberta", "gpt2", "switch_transformers")


def keep(name, model):
    """Saves what a model computes and its P, to be compared with."""
    sizes = {key: tensor for key, tensor in model.state_dict().items() if key.endswith("cluster_sizes")}
    save_file({"output": first_output(model), **sizes}, FOLDER / f"{name}.safetensors")


def fused(family, head=None):
    return fuse_model(tiny_model(family, head), FusionConfig(width=16, targets="all"))


for family in FAMILIES:
    model = fused(family)
    keep(family, model)
    model.push_to_hub(f"{family}-model")
    tiny_tokenizer(family).push_to_hub(f"{family}-model")
    folder = FOLDER / family
    model.save_pretrained(folder, max_shard_size="8KB")
    tiny_tokenizer(family).save_pretrained(folder)
    push_folder(folder, f"{family}-folder", license="mit", base_model="owner/base")

model = fused("roberta")
model.save_pretrained(FOLDER / "roberta-saved", push_to_hub=True, repo_id="roberta-saved")
model.push_to_hub("branches", revision="dev", commit_message="a branch")
HfApi().upload_folder(repo_id="tester/branches", folder_path=FOLDER / "roberta", path_in_repo="below/it")

adapted = transformers.AutoModelForCausalLM.from_pretrained("tester/gpt2-model", disable_mmap=True)
adapted = peft.get_peft_model(
    adapted, peft.LoraConfig(target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", init_lora_weights=False)
)
keep("adapter", adapted)
adapted.push_to_hub("adapter")


class FusedTrainer(FusionCardMixin, transformers.Trainer):
    pass


classifier = fused("roberta", transformers.RobertaForSequenceClassification)
tokenizer = tiny_tokenizer("roberta")
data = Dataset.from_dict({"labels": [0, 1] * 4, **tokenizer(tiny_texts(8))})
for name, trainer_class in (("trained", FusedTrainer), ("trained-plainly", transformers.Trainer)):
    trainer = trainer_class(
        classifier,
        transformers.TrainingArguments(
            output_dir=str(FOLDER / name),
            hub_model_id=f"tester/{name}",
            max_steps=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.push_to_hub()
    keep(name, classifier)
# What the plain Trainer left out of its card comes back with the model's own push.
HfApi().create_branch("tester/trained-plainly", branch="before")
classifier.push_to_hub("tester/trained-plainly")
