"""Experts that are kept as 3-D parameters: all implementations, files, adapters, exports. More is in test_kinds.py."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from any_family import WIDTH, inputs_of_any, output_of_any, tiny_family_model
from conftest import repeat_units
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.distributed import DistributedConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from hf_mlp_fusion import (
    BrokenCheckpointError,
    FusedMLP,
    FusionConfig,
    FusionConfigError,
    UnsupportedModelError,
    export_plain,
    fuse_model,
)
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import by_entry, find_ffns
from hf_mlp_fusion.modeling.stack_modules import StackScaling

LAYOUTS = {
    "plain": "mixtral",
    "beside a shared expert": "qwen2_moe",
    "after dense layers": "deepseek_v3",
    "interleaved, transposed, with biases": "gpt_oss",
    "transposed": "llama4_text",
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
HALF = FusionConfig(width=WIDTH // 2)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
decorated = pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "transposed"])
# Tiny models have tiny outputs.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def tiny(layout="plain", **changes):
    return tiny_family_model(FAMILIES[LAYOUTS[layout]], **changes)


def scaled(model):
    """Its stored weights divided by numbers of each expert's own, which its forward multiplies in again."""
    with torch.no_grad():
        for group in by_entry(ffn for ffn in find_ffns(model) if ffn.is_fused and ffn.spec.stacked):
            for ffn in group:
                own = (1.5 + ffn.expert, 0.5 + ffn.expert, 1.25) if "inner" in ffn.kernel_parts() else (1.0, 3.0)
                ffn.scaling.scales = own
            entry = model.config.mlp_fusion["ffns"][group[0].entry]
            entry["scales"] = [list(scales) for scales in group[0].holder.scales]
    return model


@decorated
@pytest.mark.parametrize("scales", [False, True])
def test_all_implementations_honour_p(layout, scales):
    fused = fuse_model(tiny(layout), HALF)
    before = output_of_any(fused)
    if scales:
        fused = scaled(fused)
        assert not torch.allclose(output_of_any(fused), before)
    found = {}
    for name in IMPLEMENTATIONS:
        fused.set_experts_implementation(name)
        found[name] = output_of_any(fused)
    for name in IMPLEMENTATIONS[1:]:
        torch.testing.assert_close(found[name], found["eager"], **CLOSE)


@layouts
def test_gradients_are_those_of_the_folded_weights(layout):
    """Of each implementation: what a stored weight is multiplied by, its gradient is too."""
    gradients = []
    for name in IMPLEMENTATIONS if layout != "transposed" else ("eager",):
        fused = scaled(fuse_model(tiny(layout), HALF))
        if layout != "transposed":
            fused.set_experts_implementation(name)
        inputs = inputs_of_any(fused)
        fused(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in fused.named_parameters() if "experts" in name})
    for other in gradients[1:]:
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_fresh_process_honours_p_in_every_implementation(tmp_path):
    jobs, models = [], {}
    for layout in LAYOUTS:
        model = scaled(fuse_model(tiny(layout), HALF))
        folder = tmp_path / LAYOUTS[layout]
        model.save_pretrained(folder, max_shard_size="20KB")
        for name in IMPLEMENTATIONS if layout != "transposed" else (None,):
            out = f"{folder}-{name}.safetensors"
            kwargs = {} if name is None else {"experts_implementation": name}
            jobs.append({"auto": "AutoModelForCausalLM", "folder": str(folder), "out": out, "kwargs": kwargs})
            models[out] = (model, name)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "fresh_process.py"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, script, tmp_path / "jobs.json"], check=True, env=environment)
    from conftest import first_output

    for out, (model, name) in models.items():
        if name is not None:
            model.set_experts_implementation(name)
        assert load_file(out)["output"].equal(first_output(model)), out


def test_what_is_stored():
    """P beside stock names, an entry a stack, a receipt an expert."""
    fused = fuse_model(tiny(), HALF)
    name = "model.layers.0.mlp.experts"
    state = fused.state_dict()
    assert state[f"{name}.cluster_scaling.cluster_sizes"].shape == (4, WIDTH // 2)
    assert state[f"{name}.cluster_scaling.cluster_sizes"].dtype == torch.int32
    assert set(state) - set(tiny().state_dict()) == {
        f"model.layers.{layer}.mlp.experts.cluster_scaling.cluster_sizes" for layer in range(2)
    }
    assert set(fused.config.mlp_fusion["ffns"]) == {"layers.0.mlp.experts", "layers.1.mlp.experts"}
    assert [report.name for report in fused.fusion_report.ffns][:4] == [f"layers.0.mlp.experts.{e}" for e in range(4)]
    stack = fused.get_submodule(name)
    assert type(stack).__name__ == "FusedMixtralExperts"
    assert isinstance(stack, FusedMLP)
    assert (stack.width, stack.original_width, stack.intermediate_dim) == (WIDTH // 2, WIDTH, WIDTH // 2)


@pytest.mark.parametrize("fault", ["missing", "sum", "floats", "shape", "scales"])
def test_a_broken_stack_is_refused(fault, tmp_path):
    fused = scaled(fuse_model(tiny(), HALF))
    fused.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.cluster_scaling.cluster_sizes"
    if fault == "missing":
        del tensors[name]
    elif fault == "sum":
        tensors[name][2, 0] += 1
    elif fault == "floats":
        tensors[name] = tensors[name].float()
    elif fault == "shape":
        tensors[name] = tensors[name][0].clone()
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        config["mlp_fusion"]["ffns"]["layers.1.mlp.experts"]["scales"] = [2.0, 3.0]
        (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BrokenCheckpointError, match=r"layers\.1\.mlp\.experts"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_changed_p_is_not_saved(tmp_path):
    fused = fuse_model(tiny(), HALF)
    stack = next(module for module in fused.modules() if isinstance(module, StackScaling))
    before = stack.cluster_sizes.clone()
    stack.cluster_sizes[1] += 1
    with pytest.warns(match="was changed by something"):
        fused.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.experts.cluster_scaling.cluster_sizes"].equal(
        before
    )
    fused.type(torch.bfloat16)
    assert stack.cluster_sizes.dtype == torch.int32


def test_more_experts_than_there_are_tensors(tmp_path):
    """A config cannot ask for stacks that nothing in the checkpoint is as long as."""
    fused = fuse_model(tiny(num_local_experts=40), HALF)
    fused.save_pretrained(tmp_path)
    assert output_of_any(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output_of_any(fused))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 10**9}))
    with pytest.raises(BrokenCheckpointError, match=r"num_(local_)?experts=1000000000"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_parallel_experts_are_refused(tmp_path):
    fuse_model(tiny(), HALF).save_pretrained(tmp_path)
    with pytest.raises(FusionConfigError, match="tensor parallelism"):
        AutoModelForCausalLM.from_pretrained(tmp_path, distributed_config=DistributedConfig(fsdp_size=2, ep_size=2))


def test_kernels_of_whole_blocks_are_refused(monkeypatch):
    fused = fuse_model(tiny("interleaved, transposed, with biases"), HALF)
    monkeypatch.setattr(GptOssMLP, "kernel_layer_name", "MegaBlocksMoeMLP", raising=False)
    with pytest.raises(FusionConfigError, match=r"MegaBlocksMoeMLP would compute model\.layers\.0\.mlp without P"):
        fused.set_use_kernels(True)


def test_one_width_a_stack():
    with pytest.raises(FusionConfigError, match=r"layers\.0\.mlp\.experts keeps its experts in one parameter.*16, 32"):
        fuse_model(tiny(), FusionConfig(width={"*.experts.1": 16, "*": 32}))
    fused = fuse_model(tiny(), FusionConfig(width={"layers.0.*": 16, "*": 32}))
    assert [group[0].width for group in by_entry(find_ffns(fused))] == [16, 32]


@pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")
def test_auto_allocates_between_stacks(tmp_path):
    """The units of a stack that are copies of each other are not needed."""
    model = tiny()
    repeat_units(model, 8)
    with torch.no_grad():
        for name, parameter in tiny().named_parameters():
            if "layers.1" in name:
                model.get_parameter(name).copy_(parameter)
    batches = [inputs_of_any(model, batch=8, seed=seed) for seed in range(4)]
    fused = fuse_model(model, FusionConfig(width="auto:0.5", multiple_of=4), calibration=batches)
    narrow, wide = (group[0].width for group in by_entry(find_ffns(fused)))
    assert narrow < WIDTH // 2 < wide
    assert narrow + wide <= WIDTH
    fused.save_pretrained(tmp_path)
    assert output_of_any(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output_of_any(fused))


def test_rivals():
    assert reduce_model(tiny(), HALF, "prune").config.mlp_fusion["method"] == "prune"
    with pytest.raises(UnsupportedModelError, match="low_rank"):
        reduce_model(tiny(), HALF, "svd")
    with pytest.raises(UnsupportedModelError, match="3-D"):
        reduce_model(tiny(), HALF, "ntk_sap")


def lora(**changes):
    return LoraConfig(r=2, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], **changes)


def test_adapters_of_experts(tmp_path):
    fused = fuse_model(tiny(), HALF)
    adapted = get_peft_model(fused, lora())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    outputs = {}
    for name in IMPLEMENTATIONS:
        adapted.get_base_model().set_experts_implementation(name)
        outputs[name] = output_of_any(adapted)
        torch.testing.assert_close(outputs[name], outputs["eager"], **CLOSE)
    adapted.save_pretrained(tmp_path / "adapter")
    fuse_model(tiny(), HALF).save_pretrained(tmp_path / "fused")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "fused"), tmp_path / "adapter")
    assert output_of_any(again).equal(output_of_any(adapted))
    torch.testing.assert_close(output_of_any(again.merge_and_unload()), outputs["grouped_mm"], **CLOSE)


@pytest.mark.parametrize("width", [WIDTH, 16])
@pytest.mark.filterwarnings("ignore:.*unfused|.*narrower::")
def test_adapters_of_another_width_are_refused(width, tmp_path):
    other = tiny() if width == WIDTH else fuse_model(tiny(), FusionConfig(width=width))
    get_peft_model(other, lora()).save_pretrained(tmp_path)
    whose = "the unfused model" if width == WIDTH else "a model fused to other widths"
    with pytest.raises(BrokenCheckpointError, match=f"belong to {whose}.*here are {WIDTH // 2}"):
        PeftModel.from_pretrained(fuse_model(tiny(), HALF), tmp_path)


def test_exports_load_without_the_package(tmp_path):
    """Under the names that the Hub's checkpoints have, an expert each."""
    jobs, expected = [], {}
    for layout in LAYOUTS:
        fused = scaled(fuse_model(tiny(layout), FusionConfig(width=WIDTH // 2, targets="all")))
        folder = tmp_path / LAYOUTS[layout]
        export_plain(fused, folder)
        save_file(inputs_of_any(fused), f"{folder}.in")
        jobs.append(
            {"auto": "AutoModelForCausalLM", "folder": str(folder), "inputs": f"{folder}.in", "out": f"{folder}.out"}
        )
        expected[f"{folder}.out"] = output_of_any(fused)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "plain_process.py"
    subprocess.run([sys.executable, script, tmp_path / "jobs.json"], check=True, cwd=tmp_path)
    for out, wanted in expected.items():
        torch.testing.assert_close(load_file(out)["output"], wanted, rtol=1e-3, atol=1e-5)
    with safe_open(tmp_path / "mixtral" / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in set(file.keys())
    assert MixtralConfig.from_pretrained(tmp_path / "mixtral").intermediate_size == WIDTH // 2


def test_an_export_of_routed_experts_alone(tmp_path):
    """DeepSeek's shared experts are a multiple of the routed ones' width, and become a larger one."""
    fused = fuse_model(tiny("after dense layers"), HALF)
    export_plain(fused, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert (plain.config.moe_intermediate_size, plain.config.n_shared_experts) == (WIDTH // 2, 2)
    torch.testing.assert_close(output_of_any(plain), output_of_any(fused), rtol=1e-3, atol=1e-5)


@layouts
def test_gradient_checkpointing_and_router_logits(layout):
    fused = fuse_model(tiny(layout), HALF).train()
    batch = inputs_of_any(fused)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(fused)
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    logits = [model.eval()(**batch, output_router_logits=True).router_logits[0] for model in (tiny(layout), fused)]
    assert logits[0].equal(logits[1])  # of the first layer, which no fused expert comes before
