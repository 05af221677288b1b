"""Quantized fused models, and LoRA on them: fuse, save, load with a quantization config."""

import pytest
import torch
from conftest import TINY_CONFIGS, first_output
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from tiny_adapters import FFN_TARGETS, fused_model, lora, scaling_matrices, train
from transformers import BitsAndBytesConfig, TorchAoConfig

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.modeling.find import find_ffns

FAMILIES = sorted(TINY_CONFIGS)
# 4-bit blocks hold 64 weights, and bitsandbytes' CPU kernels want multiples of 32 rows.
BERT_SIZES = {"hidden_size": 64, "intermediate_size": 256}
SIZES = {
    "bert": BERT_SIZES,
    "roberta": BERT_SIZES,
    "gpt2": {"n_embd": 64},
    "switch_transformers": {"d_model": 64, "d_kv": 32, "d_ff": 256},
}
KINDS = {"torchao-int8": 0.02, "bnb-int8": 0.05, "bnb-nf4": 0.3}  # and the error that the output may have


def torchao(name):
    quantize = pytest.importorskip("torchao.quantization", reason="torchao quantizes, and is optional")
    return TorchAoConfig(getattr(quantize, name)(version=2))


def quantization(family, kind):
    if kind == "torchao-int8":
        return torchao("Int8WeightOnlyConfig")
    pytest.importorskip("bitsandbytes", minversion="0.49", reason="bitsandbytes quantizes on CPUs since 0.49")
    if kind == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    # Stock Switch casts hidden states to the dtype of wo, and its routers have fewer rows than a CPU kernel wants.
    skip = ["wo", "classifier", "lm_head"] if family == "switch_transformers" else None
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip)


def is_quantized(projection):
    return type(projection).__name__.startswith(("Linear4", "Linear8")) or "Int8" in type(projection.weight).__name__


def saved_model(family, folder):
    model = fused_model(family, config=FusionConfig(width=64, targets="all"), **SIZES[family])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_a_quantized_model(family, kind, tmp_path):
    config = quantization(family, kind)
    fused = saved_model(family, tmp_path / "fused")
    full, sizes = first_output(fused), scaling_matrices(fused)
    model = type(fused).from_pretrained(tmp_path / "fused", quantization_config=config)
    for ffn in find_ffns(model):
        # torchao quantizes nn.Linear alone, and GPT-2 has none in its blocks.
        assert is_quantized(ffn.host.get_submodule(ffn.spec.up)) == (family != "gpt2" or kind.startswith("bnb"))
    model.save_pretrained(tmp_path / "quantized")
    if kind == "bnb-nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, lora(family, target_modules=FFN_TARGETS[family]))
    train(model)
    after = first_output(model)
    assert all(map(torch.equal, scaling_matrices(model), sizes))
    assert {matrix.dtype for matrix in scaling_matrices(model)} == {torch.int32}
    model.save_pretrained(tmp_path / "adapter")

    again = type(fused).from_pretrained(tmp_path / "quantized")
    before = first_output(again)
    assert all(map(torch.equal, scaling_matrices(again), sizes))
    assert (before - full).norm() < KINDS[kind] * full.norm()
    with_adapter = PeftModel.from_pretrained(again, tmp_path / "adapter")
    torch.testing.assert_close(first_output(with_adapter), after, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["roberta", "switch_transformers"])
def test_dynamic_int8_by_torchao(family, tmp_path):
    """For inference: no gradient passes its layers."""
    fused = saved_model(family, tmp_path / "fused")
    config = torchao("Int8DynamicActivationInt8WeightConfig")
    model = type(fused).from_pretrained(tmp_path / "fused", quantization_config=config)
    full, output = first_output(fused), first_output(model)
    assert 0 < (output - full).norm() < 0.1 * full.norm()
    model.save_pretrained(tmp_path / "quantized")
    again = type(fused).from_pretrained(tmp_path / "quantized")
    assert torch.equal(first_output(again), output)
    assert all(map(torch.equal, scaling_matrices(again), scaling_matrices(fused)))


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning"
)  # torch's plan, to torchao
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_int8_by_torch():
    fused = fused_model("roberta")
    full = first_output(fused)
    model = torch.ao.quantization.quantize_dynamic(fused, {torch.nn.Linear}, dtype=torch.qint8)
    assert 0 < (first_output(model) - full).norm() < 0.05 * full.norm()
    assert all(map(torch.equal, scaling_matrices(model), scaling_matrices(fused)))
