"""Plain exports: what a process without the plugin makes of them, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import first_output, model_inputs, tiny_model
from safetensors.torch import load_file, save_file
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import (
    FusionConfig,
    FusionConfigError,
    UnsupportedModelError,
    calibrate_ntk,
    export_plain,
    fuse_model,
)
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.families import FAMILIES

ALL = FusionConfig(width=16, targets="all")
FIELDS = {
    "bert": "intermediate_size",
    "roberta": "intermediate_size",
    "gpt2": "n_inner",
    "switch_transformers": "d_ff",
}
AUTO = {
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForMaskedLM",
    "gpt2": "AutoModelForCausalLM",
    "switch_transformers": "AutoModelForSeq2SeqLM",
}


def mixed(family):
    """A model of which only some FFNs are fused: its last layers, or its experts."""
    return fuse_model(tiny_model(family), FusionConfig(width=16, layers="last:2"))


def calibrated():
    stock = tiny_model("gpt2")
    model = fuse_model(stock, ALL)
    calibrate_ntk(model, stock, [model_inputs(stock) | {"labels": model_inputs(stock)["input_ids"]}])
    return model


CASES = {family: (AUTO[family], lambda family=family: fuse_model(tiny_model(family), ALL), {}) for family in FIELDS}
CASES |= {f"padded-{family}": (AUTO[family], lambda family=family: mixed(family), {"pad": True}) for family in FIELDS}
CASES |= {
    "calibrated": (AUTO["gpt2"], calibrated, {}),
    "pruned": (AUTO["bert"], lambda: reduce_model(tiny_model("bert"), ALL, "prune"), {}),
    "classifier": (
        "AutoModelForSequenceClassification",
        lambda: fuse_model(tiny_model("roberta", transformers.RobertaForSequenceClassification, num_labels=3), ALL),
        {},
    ),
    "body": ("AutoModel", lambda: fuse_model(tiny_model("gpt2").transformer, ALL), {}),
}


def run_plain(root, folders):
    """Loads folders in a process that cannot import the plugin; gives their outputs and classes."""
    jobs = [
        {"auto": auto, "folder": str(folder), "inputs": str(root / f"{name}.in"), "out": str(root / f"{name}.out")}
        for name, (auto, folder, inputs) in folders.items()
    ]
    for name, (_, _, inputs) in folders.items():
        save_file({key: tensor.contiguous() for key, tensor in inputs.items()}, root / f"{name}.in")
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "plain_process.py"
    subprocess.run([sys.executable, script, root / "jobs.json"], check=True, env=os.environ, cwd=root)
    return {name: load_file(root / f"{name}.out")["output"] for name in folders}


def assert_equal_outputs(found, expected):
    """Equal to 1e-5 of the largest output: what float32 keeps of a sum over layers."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports every case and loads all in one process without the plugin: folders, reports, models, outputs."""
    root = tmp_path_factory.mktemp("plain")
    models = {name: make() for name, (_, make, _) in CASES.items()}
    reports = {name: export_plain(models[name], root / name, **CASES[name][2]) for name in CASES}
    folders = {name: (auto, root / name, model_inputs(models[name])) for name, (auto, _, _) in CASES.items()}
    return root, reports, models, run_plain(root, folders)


@pytest.mark.parametrize("name", CASES)
def test_a_process_without_the_plugin_computes_the_same(exported, name):
    root, _, models, outputs = exported
    assert_equal_outputs(outputs[name], first_output(models[name]))
    config = json.loads((root / name / "config.json").read_text())
    family = models[name].config.stock_model_type
    assert config["model_type"] == family
    assert config["architectures"] == [type(models[name]).__name__.removeprefix("Fused")]
    assert "mlp_fusion" not in config
    assert config[FIELDS[family]] == (64 if name.startswith("padded") else 16)
    note = (root / name / "README.md").read_text()
    assert "for inference" in note
    assert ("zero units" in note) == name.startswith("padded")
    assert list((root / name).glob("*.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_the_report_says_what_was_made(exported, name):
    root, reports, models, _ = exported
    report, model = reports[name], models[name]
    plain = transformers.AutoModel.from_pretrained(root / name)
    assert (report.widths, report.dtype) == ({FIELDS[plain.config.model_type]: report.width}, "float32")
    assert report.width == getattr(plain.config, FIELDS[plain.config.model_type])
    added = report.parameters - model.num_parameters()
    assert (report.padding_parameters, report.padding_bytes) == (added, 4 * added)
    assert report.parameters_original == model.fusion_report.parameters_before
    if name.startswith("padded"):
        assert report.padded == {ffn.name: 16 for ffn in model.fusion_report.ffns}
        assert report.parameters == report.parameters_original  # padded up to what it was before
    else:
        assert (report.padded, added) == ({}, 0)


def test_the_model_stays_as_it_is(exported):
    _, _, models, _ = exported
    before = fuse_model(tiny_model("gpt2"), ALL)
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, models["gpt2"].state_dict()[name])
    assert models["gpt2"].config.to_dict() == before.config.to_dict()


def test_zero_units_add_nothing(exported):
    root, _, _, _ = exported
    mlp = transformers.GPT2LMHeadModel.from_pretrained(root / "padded-gpt2").transformer.h[2].mlp
    assert not mlp.c_fc.weight[:, 16:].any()
    assert not mlp.c_fc.bias[16:].any()
    assert not mlp.c_proj.weight[16:].any()
    assert mlp.c_proj.weight[:16].any()


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "gpt2",
            r"2 widths, 16 \(h\.1\.mlp and 1 more\), 64 \(h\.0\.mlp\), and n_inner of a GPT2Config is one number",
        ),
        ("switch_transformers", r"16 \(encoder\.block\.3.*expert_0 and 7 more\), 64 .*d_ff of a SwitchTransformersC"),
    ],
)
def test_different_widths_are_named_and_priced(family, message, tmp_path):
    model = mixed(family)
    with pytest.raises(FusionConfigError, match=message) as raised:
        export_plain(model, tmp_path / "plain")
    added = model.fusion_report.parameters_before - model.num_parameters()
    assert f"{added:,} parameters more, in all 100% of what there was before fusion" in str(raised.value)
    assert not (tmp_path / "plain").exists()


def test_many_widths_are_summed_up(tmp_path):
    widths = {f"encoder.layer.{number}": 16 + 8 * number for number in range(5)}
    model = fuse_model(tiny_model("bert", num_hidden_layers=6), FusionConfig(width=widths, layers=[*widths]))
    with pytest.raises(FusionConfigError, match=r"6 widths, 16 \(encoder.layer.0\), 24 .*, 3 between, 64 \("):
        export_plain(model, tmp_path / "plain")


def test_bfloat16(tmp_path):
    """P is multiplied in before the weights are rounded: no further from float32 than the fused model in bfloat16."""
    model = fuse_model(tiny_model("roberta"), ALL)
    expected = first_output(model)
    report = export_plain(model, tmp_path / "plain", dtype=torch.bfloat16)
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "plain")
    assert (report.dtype, plain.dtype, model.dtype) == ("bfloat16", torch.bfloat16, torch.float32)
    assert report.bytes < 0.6 * model.get_memory_footprint()
    assert (first_output(plain).float() - expected).abs().max() <= 2**-6 * expected.abs().max()


def test_what_no_stock_class_holds(tmp_path):
    class MyModel(transformers.GPT2LMHeadModel):
        pass

    bert = tiny_model("bert")
    cases = [
        (tiny_model("gpt2"), "GPT2LMHeadModel is a stock class already"),
        (reduce_model(bert, ALL, "svd"), r"encoder\.layer\.0 has projections of low rank"),
        (fuse_model(tiny_model("gpt2", MyModel), ALL), "MyModel is no class of transformers"),
    ]
    for model, message in cases:
        with pytest.raises(UnsupportedModelError, match=message):
            export_plain(model, tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_a_family_must_say_its_width_field(tmp_path, monkeypatch):
    model = fuse_model(tiny_model("gpt2"), ALL)
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], width_field=None))
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' does not say.*width_field='intermediate_size'"):
        export_plain(model, tmp_path / "plain")


def test_adapters_are_merged_first(tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["c_fc", "mlp.c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    wrapped = get_peft_model(calibrated(), lora)
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        export_plain(wrapped, tmp_path / "plain")
    model = wrapped.merge_and_unload()
    export_plain(model, tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert_equal_outputs(first_output(plain), first_output(model))


@pytest.fixture
def folder(tmp_path):
    """A fused folder with a tokenizer."""
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "fused")
    fuse_model(tiny_model("gpt2"), ALL).save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


def test_a_folder_is_exported_with_its_tokenizer(folder, tmp_path):
    export_plain(folder, tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "fusion_report.json" not in names
    generate = transformers.pipeline("text-generation", model=str(tmp_path / "plain"))
    assert generate("w1 w2", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("w1 w2")


def test_the_command(cli, folder, tmp_path):
    code, out, err = cli("export", folder, tmp_path / "plain", "--dtype", "float16", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["width"], report["dtype"], report["onnx_error"]) == (16, "float16", None)
    code, out, err = cli("export", folder, tmp_path / "plain", "--overwrite")
    assert code == 0, err
    assert "GPT2LMHeadModel with n_inner=16 in float32" in out
    assert "for inference" in out.replace("\n", " ")
    assert "zero units" not in out


def test_the_command_pads(cli, tmp_path):
    model = mixed("bert")
    model.save_pretrained(tmp_path / "fused")
    code, _, err = cli("export", tmp_path / "fused", tmp_path / "plain")
    assert (code, "--pad" in err, (tmp_path / "plain").exists()) == (1, True, False)
    code, out, err = cli("export", tmp_path / "fused", tmp_path / "plain", "--pad")
    assert code == 0, err
    out = " ".join(out.split())
    added = model.fusion_report.parameters_before - model.num_parameters()
    assert f"2 FFNs filled up with zero units: {added:,} parameters" in out
    assert "100.0% of the parameters before fusion" in out


def test_errors_of_the_command_are_one_line(cli, folder, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "stock")
    for arguments, message in [
        ((tmp_path / "stock", tmp_path / "plain"), "is not fused"),
        ((tmp_path / "nowhere", tmp_path / "plain"), "no such folder"),
        ((folder, folder, "--overwrite"), "is or holds the model itself"),
        ((folder, tmp_path / "stock"), "is not empty"),
        ((folder, tmp_path / "plain", "--dtype", "int8"), "--dtype must be"),
    ]:
        code, out, err = cli("export", *arguments)
        assert (code, out) == (1, "")
        assert message in err
        assert err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "plain").exists()


@pytest.mark.real
@pytest.mark.parametrize("name", ["roberta-mini", "gpt2-mini"])
def test_real_models_compute_the_same_without_the_plugin(name, real_model_path, tmp_path):
    auto = AUTO["roberta" if name == "roberta-mini" else "gpt2"]
    load = getattr(transformers, auto).from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_model_path(name))
    batch = tokenizer(["The film was a great success, and everybody liked it."] * 2, return_tensors="pt")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    model = fuse_model(load(real_model_path(name), dtype=torch.float32), FusionConfig()).eval()
    report = export_plain(model, tmp_path / "plain")
    with torch.no_grad():
        expected = model(**inputs)[0]
    found = run_plain(tmp_path, {name: (auto, tmp_path / "plain", inputs)})[name]
    assert_equal_outputs(found, expected)
    assert report.parameters < 0.62 * report.parameters_original
