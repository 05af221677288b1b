"""What must hold of every kind of FFN, whatever family it is in: gated, packed, without an activation module."""

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from any_family import WIDTH, inputs_of_any, output_of_any, tiny_family_model
from conftest import repeat_units
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, export_plain, fold, fuse_model, unfold
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion.kernel_size import kernel_sizes
from hf_mlp_fusion.modeling.find import LAYOUTS, find_ffns
from hf_mlp_fusion.modeling.modules import ViewedMLP
from hf_mlp_fusion.training import scale_gradients_for_sgd

KINDS = {
    "plain": ("mpnet", {}),
    "transposed": ("gpt2", {}),
    "gated": ("llama", {}),
    "gated, with biases": ("llama", {"mlp_bias": True}),
    "packed": ("phi3", {}),
    "packed, with biases": ("modernbert", {"mlp_bias": True}),
    "activation is a function": ("esm", {}),
    "in the layer itself": ("opt", {}),
    "one name, two kinds": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "two stacks": ("bart", {}),
    "stacked": ("mixtral", {}),
    "stacked, others beside": ("qwen2_moe", {"mlp_only_layers": [1]}),
    "stacked, transposed": ("llama4_text", {}),
    "stacked, interleaved, with biases": ("gpt_oss", {}),
}
HALF = FusionConfig(width=WIDTH // 2, targets="all")
kinds = pytest.mark.parametrize("kind", KINDS)


def tiny(kind):
    family, changes = KINDS[kind]
    model = tiny_family_model(FAMILIES[family], **changes)
    if model._can_set_experts_implementation():  # the others have no float64; test_stacked.py compares all
        model.set_experts_implementation("eager")
    return model


def batches_for(model, count=4):
    """Batches for calibration; labels for language models."""
    made = [inputs_of_any(model, batch=4, seed=seed) for seed in range(count)]
    key = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    return [batch | {"labels": batch[key]} for batch in made]


@kinds
def test_duplicated_units_are_fused_exactly(kind):
    model = tiny(kind).double()
    repeat_units(model, 2)
    fused = fuse_model(model, HALF)
    assert all((ffn.scaling.cluster_sizes == 2).all() for ffn in find_ffns(fused))
    torch.testing.assert_close(output_of_any(fused), output_of_any(model), rtol=1e-12, atol=1e-12)


@kinds
def test_a_handle_computes_what_the_model_computes(kind):
    seen, hooks = [], []
    for model in (tiny(kind), fuse_model(tiny(kind), HALF)):
        seen.clear()
        for ffn in find_ffns(model):
            inputs = []
            hooks += ffn.watch(
                inputs.append,
                lambda _, output, ffn=ffn, inputs=inputs: seen.append((ffn, inputs.pop(), output.clone())),
            )
        output_of_any(model)
        while hooks:
            hooks.pop().remove()
        assert len(seen) == len(list(find_ffns(model)))
        with torch.no_grad():
            for ffn, hidden, output in seen:
                torch.testing.assert_close(ffn.outputs(hidden), output)
                if not ffn.is_fused:
                    own = ffn.read()
                    bias = 0 if own.down_bias is None else own.down_bias
                    torch.testing.assert_close(ffn.hidden(hidden, own) @ own.down.T + bias, output)


@kinds
def test_weights_are_written_as_they_are_read(kind):
    model = tiny(kind)
    before = copy.deepcopy(model.state_dict())
    for ffn in find_ffns(model):
        own = ffn.tensors(ffn.read())
        assert {f"{ffn.full_name}.{name}" for name in own} == set(ffn.parameter_names())
        ffn.write({name: tensor.clone() for name, tensor in own.items()})
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_fresh_process_loads_each_kind_bit_for_bit(tmp_path):
    jobs = []
    models = {}
    for number, kind in enumerate(KINDS):
        if kind == "one name, two kinds":
            auto = "AutoModelForSeq2SeqLM"
        else:
            name = type(tiny(kind)).__name__
            auto = "AutoModelForCausalLM" if "CausalLM" in name or "LMHead" in name else "AutoModelForMaskedLM"
            auto = "AutoModelForSeq2SeqLM" if "Conditional" in name else auto
        fused = fuse_model(tiny(kind), HALF, calibration=batches_for(tiny(kind)))
        folder = tmp_path / str(number)
        fused.save_pretrained(folder, max_shard_size="20KB")
        jobs.append({"auto": auto, "folder": str(folder), "out": f"{folder}.safetensors", "kwargs": {}})
        models[f"{folder}.safetensors"] = fused
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "fresh_process.py"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, script, tmp_path / "jobs.json"], check=True, env=environment)
    from conftest import first_output

    for out, fused in models.items():
        with safe_open(out, framework="pt") as file:
            assert file.metadata()["class"] == type(fused).__name__
            assert file.get_tensor("output").equal(first_output(fused)), type(fused).__name__


@kinds
def test_lora_on_the_projections_merges_exactly(kind):
    fused = fuse_model(tiny(kind), HALF).double()
    leaves = {path.rpartition(".")[2] for ffn in find_ffns(fused) for path in ffn.spec.projections.values()}
    targets = {"target_parameters" if kind.startswith("stacked") else "target_modules": sorted(leaves)}
    adapted = get_peft_model(fused, LoraConfig(r=2, fan_in_fan_out=kind == "transposed", **targets))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    apart = output_of_any(adapted)
    merged = output_of_any(adapted.merge_and_unload())
    torch.testing.assert_close(merged, apart, rtol=1e-9, atol=1e-9)


@kinds
def test_the_export_has_the_stock_names(kind, tmp_path):
    model = tiny(kind)
    fused = fuse_model(model, HALF)
    export_plain(fused, tmp_path / "plain")
    model.save_pretrained(tmp_path / "stock")
    shapes = []
    for folder in ("stock", "plain"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            shapes.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert shapes[0].keys() == shapes[1].keys()
    own = {name for ffn in find_ffns(model) for name in ffn.parameter_names()}
    changed = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert {name for name in changed if ".experts." not in name} <= own  # the Hub's experts have names of their own
    torch.testing.assert_close(
        output_of_any(type(model).from_pretrained(tmp_path / "plain")), output_of_any(fused), rtol=1e-4, atol=1e-5
    )


@kinds
def test_calibration_with_p_apart_matches_every_kernel(kind):
    model = tiny(kind)
    batches = batches_for(model)
    fused = fuse_model(model, replace(HALF, power=1), calibration=batches)
    names = [ffn.name for ffn in find_ffns(model)]
    wanted, found = kernel_sizes(model, names, batches), kernel_sizes(fused, names, batches)
    gated = next(find_ffns(model)).read().gate is not None
    seen = next(find_ffns(model)).spec.activation is not None
    parts = ["outer"] + ["inner"] * seen + ["value"] * gated
    if kind.startswith("stacked"):
        parts = ["outer"] if "interleaved" in kind else ["outer", "inner", "value"]
    assert {name.rpartition(":")[2] for name in wanted} == set(parts)
    for name, size in wanted.items():
        assert found[name] == pytest.approx(size, rel=1e-3), name


@kinds
def test_fold_and_unfold(kind):
    fused = fuse_model(tiny(kind), HALF, calibration=batches_for(tiny(kind))).double()
    output = output_of_any(fused)
    before = copy.deepcopy(fused.state_dict())
    fold(fused)
    assert not any(ffn.is_fused for ffn in find_ffns(fused))
    torch.testing.assert_close(output_of_any(fused), output, rtol=1e-9, atol=1e-9)
    unfold(fused)
    assert fused.state_dict().keys() == before.keys()
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-12, atol=0)


@kinds
def test_copies(kind):
    fused = fuse_model(tiny(kind), HALF)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert output_of_any(again).equal(output_of_any(fused))


@kinds
def test_adapters_of_the_unfused_model_are_refused(kind):
    stock, fused = tiny(kind), fuse_model(tiny(kind), HALF)
    with pytest.raises(
        Exception, match=f"belong to the unfused model.*for {WIDTH} hidden units, here are {WIDTH // 2}"
    ):
        fused.load_state_dict(stock.state_dict(), strict=False)


@kinds
def test_sgd_moves_duplicated_units_as_in_the_original(kind):
    model = tiny(kind).double()
    repeat_units(model, 2)
    fused = fuse_model(model, HALF)
    batch = batches_for(model, 1)[0]
    with scale_gradients_for_sgd(fused):
        for one in (model, fused):
            one(**batch).loss.backward()
            with torch.no_grad():
                for parameter in one.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    torch.testing.assert_close(output_of_any(fused), output_of_any(model), rtol=1e-8, atol=1e-8)


def test_interleaved_rows():
    """No dense family has them; their weights go in and out unit by unit."""

    class InterleavedMLP(Phi3MLP):
        def forward(self, hidden):
            rows = self.gate_up_proj(hidden)
            return self.down_proj(rows[..., 1::2] * self.activation_fn(rows[..., 0::2]))

    model = tiny("packed")
    ffn = next(find_ffns(model))
    host = ffn.host
    host.__class__ = InterleavedMLP
    ffn = replace(ffn, spec=replace(ffn.spec, packed="interleaved"))
    assert isinstance(ffn, LAYOUTS["packed"])
    hidden = torch.randn(5, ffn.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(ffn.outputs(hidden), host(hidden))
        own = ffn.read()
        torch.testing.assert_close(ffn.hidden(hidden, own) @ own.down.T, host(hidden))
        assert ffn.tensors(own)["gate_up_proj.weight"].equal(host.gate_up_proj.weight)
    assert set(ffn.kernel_parts()) == {"outer"}


def test_packed_projections_have_no_low_rank_form():
    with pytest.raises(UnsupportedModelError, match=r"svd makes FFNs of the form 'low_rank'.*one matrix"):
        reduce_model(tiny("packed"), HALF, "svd")


def test_p_stands_before_the_projection_where_the_activation_is_a_function():
    fused = fuse_model(tiny("activation is a function"), HALF)
    owner = next(find_ffns(fused)).owner
    assert isinstance(owner, ViewedMLP)
    assert type(owner).__name__ == "FusedEsmOutput"
    assert "esm.encoder.layer.0.output.cluster_scaling.cluster_sizes" in fused.state_dict()


def test_the_kind_is_written_down_where_a_name_has_two(tmp_path):
    fused = fuse_model(tiny("one name, two kinds"), HALF)
    fused.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["mlp_fusion"]["ffns"].values()
    assert {entry["host"] for entry in entries} == {"T5DenseGatedActDense"}
