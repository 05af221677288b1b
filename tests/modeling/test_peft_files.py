"""Adapter files: loaded in a fresh process, and refused where they belong to a model of other widths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, tiny_model
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_adapters import CONFIG, FFN_TARGETS, fused_model, lora, train

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, fuse_model

FAMILIES = sorted(TINY_CONFIGS)
TASKS = {
    "bert": ("AutoModelForTokenClassification", transformers.BertForTokenClassification, "TOKEN_CLS"),
    "roberta": ("AutoModelForSequenceClassification", transformers.RobertaForSequenceClassification, "SEQ_CLS"),
    "gpt2": ("AutoModelForCausalLM", transformers.GPT2LMHeadModel, "CAUSAL_LM"),
    "switch_transformers": (
        "AutoModelForSeq2SeqLM",
        transformers.SwitchTransformersForConditionalGeneration,
        "SEQ_2_SEQ_LM",
    ),
}


@pytest.fixture(scope="module")
def fresh_outputs(tmp_path_factory):
    """Trains an adapter on a saved fused model of each family, and loads both in one fresh process, by both ways."""
    root = tmp_path_factory.mktemp("adapters")
    jobs, outputs = [], {}
    for family, (auto, head, task) in TASKS.items():
        folder, adapter = str(root / family), str(root / f"{family}-adapter")
        fused_model(family, head).save_pretrained(folder)
        base = getattr(transformers, auto).from_pretrained(folder, disable_mmap=True)
        model = get_peft_model(base, lora(family, target_modules=FFN_TARGETS[family], task_type=task))
        train(model)
        model.save_pretrained(adapter)
        outputs[family] = first_output(model)
        named = {"auto": auto, "folder": folder, "adapter": adapter, "out": f"{adapter}.named", "kwargs": {}}
        found = {
            "module": "peft",
            "auto": auto.replace("Auto", "AutoPeft"),
            "folder": adapter,
            "out": f"{adapter}.found",
            "kwargs": {},
        }
        jobs += [named, found]
    # Without a task, PEFT notes the class, and imports it only from packages that it is told to.
    model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(root / "gpt2"), lora("gpt2"))
    train(model)
    model.save_pretrained(root / "class-adapter")
    outputs["class"] = first_output(model)
    kwargs = {"import_allowlist": ["hf_mlp_fusion"]}
    folder, out = str(root / "class-adapter"), str(root / "class-adapter.found")
    jobs.append({"module": "peft", "auto": "AutoPeftModel", "folder": folder, "out": out, "kwargs": kwargs})
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "fresh_process.py"
    subprocess.run([sys.executable, script, root / "jobs.json"], check=True, env=os.environ)
    return root, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_process_gives_the_same(fresh_outputs, family):
    root, outputs = fresh_outputs
    named, found = (load_file(root / f"{family}-adapter.{way}")["output"] for way in ("named", "found"))
    assert torch.equal(named, outputs[family])
    torch.testing.assert_close(found, outputs[family], rtol=1e-5, atol=1e-5)


def test_a_class_is_found_without_a_task(fresh_outputs):
    root, outputs = fresh_outputs
    found = load_file(root / "class-adapter.found")["output"]
    torch.testing.assert_close(found, outputs["class"], rtol=1e-5, atol=1e-5)


ATTENTION = r".*\.(query|value|c_attn|q|v)"


def saved_adapter(model, folder, targets):
    """A trained adapter of the model, in a folder, and the model with it."""
    family = model.config.model_type.removeprefix("fused_")
    model = get_peft_model(model, lora(family, target_modules=targets))
    train(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_the_unfused_model_is_refused(family, tmp_path):
    saved_adapter(tiny_model(family), tmp_path / "unfused", "all-linear")
    ours = saved_adapter(fused_model(family), tmp_path / "ours", "all-linear")
    fused = fused_model(family)
    before = first_output(fused)
    with pytest.raises(
        BrokenCheckpointError, match=r"belong to the unfused model: .* for 64 hidden units, here are 16"
    ):
        PeftModel.from_pretrained(fused, tmp_path / "unfused")
    assert torch.equal(first_output(fused), before)
    with pytest.raises(BrokenCheckpointError, match="merge_and_unload"):
        ours.load_adapter(tmp_path / "unfused", "second")
    after = first_output(ours)
    ours.set_adapter("second")
    assert torch.equal(first_output(ours), before)  # it is there, and none of its weights
    ours.set_adapter("default")
    ours.delete_adapter("second")
    assert torch.equal(first_output(ours), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_another_fusion_is_refused(family, tmp_path):
    wider = fused_model(family, config=FusionConfig(width=32, targets="all"))
    saved_adapter(wider, tmp_path, FFN_TARGETS[family][1:])
    with pytest.raises(BrokenCheckpointError, match=r"a model fused to other widths: .* for 32 .* train one on this"):
        PeftModel.from_pretrained(fused_model(family), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_alone_does_not_depend_on_widths(family, tmp_path):
    saved_adapter(tiny_model(family), tmp_path, ATTENTION)
    fused = fused_model(family)
    before = first_output(fused)
    assert not torch.equal(first_output(PeftModel.from_pretrained(fused, tmp_path)), before)


def test_the_mend_works(tmp_path):
    """What the refusal says: merge the adapter where it belongs, and fuse the result."""
    merged = saved_adapter(tiny_model("gpt2"), tmp_path, "all-linear").merge_and_unload()
    assert type(fuse_model(merged, CONFIG)).__name__ == "FusedGPT2LMHeadModel"


def test_a_state_dict_of_the_unfused_model_is_refused_whole():
    """Trainer resumes by `load_state_dict`."""
    fused = fused_model("roberta")
    before = first_output(fused)
    with pytest.raises(BrokenCheckpointError, match=r"'roberta\.encoder\.layer\.0\.intermediate\.dense\.weight'"):
        fused.load_state_dict(tiny_model("roberta").state_dict())
    assert torch.equal(first_output(fused), before)
    fused.load_state_dict(fused_model("roberta").state_dict())
