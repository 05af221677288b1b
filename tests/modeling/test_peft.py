"""PEFT on fused models: default targets, training, merging, several adapters, trained heads."""

import copy

import pytest
import torch
import transformers
from any_family import WIDTH, tiny_family_model
from conftest import TINY_CONFIGS, first_output, tiny_model
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.utils import constants
from safetensors.torch import load_file
from tiny_adapters import FFN_TARGETS, fused_model, lora, scaling_matrices, train

from hf_mlp_fusion import FusionConfig, families, fuse_model
from hf_mlp_fusion.families.catalogue import experts

FAMILIES = sorted(TINY_CONFIGS)
HALF = FusionConfig(width=WIDTH // 2)
SAME = {"rtol": 1e-5, "atol": 1e-5}
KINDS = {
    "default": lora,
    "ffn": lambda family: lora(family, target_modules=FFN_TARGETS[family]),
    "all-linear": lambda family: lora(family, target_modules="all-linear"),
    "dora": lambda family: lora(family, target_modules=FFN_TARGETS[family], use_dora=True),
    "ia3": lambda family: IA3Config(fan_in_fan_out=family == "gpt2"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_has_the_stock_row(family):
    fused_model(family)  # a family's rows come with its first fused config
    tables = {name: table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")}
    stock = "t5" if family == "switch_transformers" else family  # PEFT knows no Switch
    assert sum(stock in table for table in tables.values()) > 20
    for name, table in tables.items():
        assert table.get(f"fused_{family}") == table.get(stock), name


@pytest.mark.parametrize("method", [LoraConfig, IA3Config])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_default_targets_are_those_of_the_stock_model(family, method):
    stock, fused = (
        get_peft_model(model, method(fan_in_fan_out=family == "gpt2")).targeted_module_names
        for model in (tiny_model(family), fused_model(family))
    )
    assert fused == stock != []


@pytest.mark.parametrize("config", [LoraConfig(), IA3Config()], ids=["lora", "ia3"])
@pytest.mark.parametrize("family", [family.model_type for family in experts.FAMILIES])
def test_stacks_of_experts_have_no_default_targets_as_stock_models_have_none(family, config):
    """PEFT asks for target modules or parameters of both in the same words."""
    model = tiny_family_model(families.FAMILIES[family])
    if config.peft_type == "IA3" and family == "mixtral":  # the one that PEFT has a row for
        stock, fused = (get_peft_model(m, copy.copy(config)) for m in (model, fuse_model(model, HALF)))
        assert fused.targeted_module_names == stock.targeted_module_names != []
        return
    said = []
    for each in (fuse_model(model, HALF), model):
        with pytest.raises(ValueError, match="target_modules") as caught:
            get_peft_model(each, copy.copy(config))
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_switch_gets_the_targets_of_t5():
    by_lora, by_ia3 = (
        get_peft_model(fused_model("switch_transformers"), method()) for method in (LoraConfig, IA3Config)
    )
    assert {name.rpartition(".")[2] for name in by_lora.targeted_module_names} == {"q", "v"}
    assert {name.rpartition(".")[2] for name in by_ia3.targeted_module_names} == {"k", "v", "wo"}
    expert = by_ia3.get_submodule("base_model.model.encoder.block.1.layer.1.mlp.experts.expert_0")
    assert expert.wo.is_feedforward  # it scales what wo sees: the hidden units, P and all


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate:UserWarning")  # PEFT says so of every IA3
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_train_save_load_merge_unmerge(family, kind, tmp_path):
    base = fused_model(family)
    before, sizes = first_output(base), scaling_matrices(base)
    frozen = copy.deepcopy(base)
    model = get_peft_model(base, KINDS[kind](family))
    assert torch.equal(first_output(model), before)
    assert all(tensor.dtype == torch.int32 for tensor in scaling_matrices(model))
    train(model)
    after = first_output(model)
    assert not torch.allclose(after, before, **SAME)
    assert all(map(torch.equal, scaling_matrices(model), sizes))

    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "cluster_sizes" in name]
    # Only the adapter was trained: on an untouched base it gives the same.
    loaded = PeftModel.from_pretrained(frozen, tmp_path)
    torch.testing.assert_close(first_output(loaded), after, **SAME)

    model.merge_adapter()
    torch.testing.assert_close(first_output(model), after, **SAME)
    model.unmerge_adapter()
    torch.testing.assert_close(first_output(model), after, **SAME)
    merged = model.merge_and_unload()
    assert type(merged) is type(frozen)
    torch.testing.assert_close(first_output(merged), after, **SAME)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(first_output(again), after, **SAME)
    assert all(map(torch.equal, scaling_matrices(again), sizes))


@pytest.mark.parametrize("family", FAMILIES)
def test_several_adapters(family):
    model = get_peft_model(fused_model(family), lora(family), "attention")
    before = first_output(model)
    train(model)
    outputs = {"attention": first_output(model)}
    model.add_adapter("ffn", lora(family, target_modules=FFN_TARGETS[family]))
    model.set_adapter("ffn")
    assert torch.equal(first_output(model), before)
    train(model)
    outputs["ffn"] = first_output(model)
    for name in ("attention", "ffn"):
        model.set_adapter(name)
        assert torch.equal(first_output(model), outputs[name])
    with model.disable_adapter():
        assert torch.equal(first_output(model), before)
    model.set_adapter("attention")
    model.delete_adapter("ffn")
    assert torch.equal(first_output(model), outputs["attention"])
    assert list(model.peft_config) == ["attention"]


@pytest.mark.parametrize(
    ("family", "head", "name"),
    [
        ("bert", transformers.BertForSequenceClassification, "classifier"),
        ("roberta", transformers.RobertaForSequenceClassification, "classifier"),
        ("gpt2", transformers.GPT2ForSequenceClassification, "score"),
    ],
)
def test_a_trained_head_is_saved_with_the_adapter(family, head, name, tmp_path):
    """By `task_type`, which names the head itself, as in every PEFT tutorial."""
    base = fused_model(family, head)
    frozen = copy.deepcopy(base)
    model = get_peft_model(base, lora(family, task_type="SEQ_CLS"))
    assert model.peft_config["default"].modules_to_save == ["classifier", "score"]
    train(model)
    model.save_pretrained(tmp_path)
    head_weights = {k: v for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if f".{name}." in k}
    stock = frozen.state_dict()
    assert head_weights
    assert not any(torch.equal(v, stock[k.removeprefix("base_model.model.")]) for k, v in head_weights.items())
    loaded = PeftModel.from_pretrained(frozen, tmp_path)
    torch.testing.assert_close(first_output(loaded), first_output(model), **SAME)


def test_a_base_that_lies_nowhere_is_not_named():
    model = get_peft_model(fused_model("bert"), lora("bert"))
    assert model.peft_config["default"].base_model_name_or_path is None


def test_adapters_of_transformers():
    """`model.add_adapter`, without a `PeftModel` around the model."""
    pytest.importorskip("peft", minversion="0.22", reason="transformers 5.24 asks for peft 0.22 there")
    model = fused_model("bert")
    before = first_output(model)
    model.add_adapter(lora("bert"))
    assert torch.equal(first_output(model), before)


@pytest.mark.real
def test_lora_on_a_real_fused_model(real_model_path, tmp_path):
    """The must: step, save, reload, merge, all outputs equal to 1e-5."""
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        real_model_path("roberta-mini"), dtype=torch.float32
    )
    fuse_model(stock, FusionConfig(width=0.25, layers="last:8")).save_pretrained(tmp_path / "fused")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    base = load(tmp_path / "fused")
    before, sizes = first_output(base), scaling_matrices(base)
    model = get_peft_model(base, lora("roberta", target_modules="all-linear", task_type="SEQ_CLS"))
    train(model)
    after = first_output(model)
    assert not torch.allclose(after, before, **SAME)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(tmp_path / "fused"), tmp_path / "adapter")
    torch.testing.assert_close(first_output(loaded), after, **SAME)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(first_output(merged), after, **SAME)
    assert all(map(torch.equal, scaling_matrices(merged), sizes))
