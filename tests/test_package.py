"""The package as a whole: what importing it costs, and what it shows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import first_output
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

import hf_mlp_fusion
from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model, register_family
from hf_mlp_fusion.families import FAMILIES, Family, FFNSpec

PACKAGE = Path(hf_mlp_fusion.__file__).parent


def test_import_is_light():
    """Registration alone must not import torch's users: no model code, no scikit-learn, no PEFT."""
    code = (
        "import sys; from transformers import AutoConfig; before = set(sys.modules); import hf_mlp_fusion.metrics\n"
        "heavy = 'accelerate datasets evaluate matplotlib nltk peft sacrebleu scipy sklearn torch'.split()\n"
        "heavy += ['transformers.modeling_utils']\n"
        "heavy += [f'transformers.models.{m}.modeling_{m}' for m in 'bert roberta gpt2 switch_transformers'.split()]\n"
        "print(sorted(set(heavy) & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented():
    assert sorted(hf_mlp_fusion.__all__) == sorted(hf_mlp_fusion._LAZY)
    for name in hf_mlp_fusion.__all__:
        assert getattr(hf_mlp_fusion, name).__doc__, name
    assert set(hf_mlp_fusion.__all__) <= set(dir(hf_mlp_fusion))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_mlp_fusion.nothing  # noqa: B018


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_and_classes_are_documented(path):
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for node in [tree, *(child for parent in (tree, *classes) for child in parent.body)]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "module")
            assert ast.get_docstring(node) or name.startswith("_") or name == "extra_repr", f"{path.name}: {name}"


def test_register_family():
    layer = FFNSpec(
        host="ErnieLayer",
        pattern=r"encoder\.layer\.(?P<layer>\d+)",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
    )
    try:
        register_family(Family("ernie", "ErnieConfig", (layer,), peft_like="bert", width_field="intermediate_size"))
        config = transformers.ErnieConfig(
            vocab_size=99,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
        model = transformers.ErnieForMaskedLM(config)
        fused = fuse_model(model, FusionConfig(width=64))
        assert type(fused).__name__ == "FusedErnieForMaskedLM"
        assert first_output(fused).equal(first_output(model))
        assert type(transformers.AutoModelForMaskedLM.from_config(fused.config)) is type(fused)
        assert TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["fused_ernie"] == ["query", "value"]
        with pytest.raises(FusionConfigError, match="'ernie' is registered already"):
            register_family(Family("ernie", "BertConfig", (layer,)))
    finally:
        FAMILIES.pop("ernie", None)


def test_a_family_needs_a_stock_config():
    with pytest.raises(FusionConfigError, match="no config class 'NopeConfig'"):
        register_family(Family("nope", "NopeConfig", ()))
    assert "nope" not in FAMILIES
