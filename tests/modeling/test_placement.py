"""How fused models of other families are placed, told an implementation, and read from other formats."""

import json
import os
import subprocess
import sys

import gguf
import pytest
import torch
import transformers
from accelerate import disk_offload, infer_auto_device_map
from any_family import output_of_any, tiny_family_model
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, export_plain, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns

HALF = FusionConfig(width=32)


@pytest.mark.parametrize("name", ["opt", "bart", "llama", "whisper"])
def test_no_device_map_splits_a_layer(name):
    """Also where fusion has changed the class of the layer itself."""
    model = tiny_family_model(FAMILIES[name])
    fused = fuse_model(model, HALF)
    whole = {type(module).__name__.removeprefix("Fused") for module in fused.modules()} & set(model._no_split_modules)
    assert whole
    sizes = {0: fused.get_memory_footprint() // 2, "cpu": 10**9}
    for place in infer_auto_device_map(
        fused, sizes, no_split_module_classes=list(fused._no_split_modules), offload_buffers=True
    ):
        parents = [fused.get_submodule(place.rsplit(".", n)[0]) for n in range(1, place.count(".") + 1)]
        assert not any(type(parent).__name__.removeprefix("Fused") in whole for parent in parents), place


def test_a_fresh_process_takes_an_attention_by_name(tmp_path):
    fuse_model(tiny_family_model(FAMILIES["llama"]), HALF).save_pretrained(tmp_path)
    code = (
        "import sys, hf_mlp_fusion\n"
        "from transformers import AutoModelForCausalLM\n"
        "for name in ('eager', 'sdpa'):\n"
        "    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation=name)\n"
        "    print(model.config._attn_implementation)\n"
        "    model.set_attn_implementation('eager')\n"
        "    print(model.config._attn_implementation)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, tmp_path]
    run = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["eager", "eager", "sdpa", "eager"]


@pytest.mark.parametrize(
    "asked", [{"tp_plan": "auto"}, {"tp_size": 2}, {"distributed_config": DistributedConfig(tp_size=2)}]
)
def test_tensor_parallelism_is_refused(asked, tmp_path):
    fuse_model(tiny_family_model(FAMILIES["llama"]), HALF).save_pretrained(tmp_path)
    with pytest.raises(FusionConfigError, match="hidden units apart, and P stays whole: for inference export"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **asked)


@pytest.fixture
def gguf_folder(tmp_path):
    """A tiny Llama in GGUF, and the model that it was."""
    model = tiny_family_model(FAMILIES["llama"])
    config = model.config
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def test_a_model_read_from_gguf_is_fused(gguf_folder):
    stock = AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file="model.gguf", dtype=torch.float32)
    assert stock.is_quantized  # it calls itself so
    fused = fuse_model(stock, HALF)
    fused.save_pretrained(gguf_folder / "fused")
    assert "quantization_config" not in json.loads((gguf_folder / "fused" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(gguf_folder / "fused")
    assert output_of_any(again).equal(output_of_any(fused))


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Wav2Vec2ForCTC", "CLIPModel"])
def test_a_model_made_from_its_config_alone_is_saved_and_loaded(name, tmp_path):
    """Stock classes of these families save under older names; P must come along."""
    stock = getattr(transformers, name)
    family = FAMILIES[stock.config_class.model_type]
    fused = fuse_model(tiny_family_model(family, stock), HALF)
    made = type(fused)(fused.config).eval()
    made.save_pretrained(tmp_path)
    again = type(fused).from_pretrained(tmp_path)
    assert output_of_any(again).equal(output_of_any(made))


def test_a_part_of_a_fused_model_has_a_stock_config_and_is_refused(tmp_path):
    fuse_model(tiny_family_model(FAMILIES["clip"]), HALF).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.CLIPTextModel.from_pretrained(tmp_path)


def test_widths_that_no_stock_config_can_say_are_refused(tmp_path):
    model = tiny_family_model(FAMILIES["dinov2"])
    export_plain(fuse_model(model, FusionConfig(width=16)), tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["mlp_ratio"] == 1
    with pytest.raises(UnsupportedModelError, match=r"no Dinov2Config makes encoder\.layer\.0\.mlp 24 units wide"):
        export_plain(fuse_model(model, FusionConfig(width=24)), tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])  # accelerate cannot offload a stock Llama 4
def test_an_offloaded_stack_has_its_p(name, tmp_path):
    """Weights and P lie on disk between forwards, where no forward of the stack's own parts would fetch them."""
    fused = fuse_model(tiny_family_model(FAMILIES[name]), HALF)
    for ffn in find_ffns(fused):
        if ffn.is_fused:
            ffn.scaling.scales = (1.0, 2.0 + ffn.expert)
    expected = output_of_any(fused)
    offloaded = disk_offload(fused, tmp_path, execution_device=torch.device("cpu"), offload_buffers=True)
    assert all(ffn.holder.cluster_sizes.is_meta for ffn in find_ffns(offloaded) if ffn.is_fused)
    assert output_of_any(offloaded).equal(expected)
    assert output_of_any(offloaded).equal(expected)
