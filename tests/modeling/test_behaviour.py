"""A fused model keeps the behaviour of its stock class."""

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, model_inputs, tiny_model

from hf_mlp_fusion import FusedMLP, FusionConfig, fuse_model

CONFIG = FusionConfig(width=16, targets="all")
FAMILIES = sorted(TINY_CONFIGS)


@pytest.fixture(params=FAMILIES)
def fused(request):
    return fuse_model(tiny_model(request.param), CONFIG)


@pytest.mark.parametrize("head", [None, "body"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions(family, head):
    """Also of a body alone, whose recording hooks hang on its own class."""
    body = None if head is None else type(tiny_model(family).base_model)
    stock = tiny_model(family, body, attn_implementation="eager")
    fused = fuse_model(stock, CONFIG)
    assert fused.config._attn_implementation == "eager"
    inputs = model_inputs(stock)
    with torch.no_grad():
        expected, found = (m(**inputs, output_hidden_states=True, output_attentions=True) for m in (stock, fused))
    assert expected.keys() == found.keys()
    for name in expected:
        if name.endswith(("hidden_states", "attentions")):
            assert len(found[name]) > 0 or name == "cross_attentions"  # recorded, and empty, in decoders alone
            assert [x.shape for x in expected[name]] == [x.shape for x in found[name]]


def test_router_logits():
    stock = tiny_model("switch_transformers")
    fused = fuse_model(stock, CONFIG)
    inputs = model_inputs(stock)
    with torch.no_grad():
        expected, found = (m(**inputs, output_router_logits=True) for m in (stock, fused))
    first = [
        x[0] if isinstance(x, tuple) else x
        for x in (expected.encoder_router_logits[0], found.encoder_router_logits[0])
    ]
    assert first[0].shape == first[1].shape
    assert len(expected.encoder_router_logits) == len(found.encoder_router_logits) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family):
    grads = []
    for checkpointing in (False, True):
        model = fuse_model(tiny_model(family), CONFIG)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "jitter_noise"):
                module.jitter_noise = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = model_inputs(model)
        labels = inputs.pop("decoder_input_ids", inputs["input_ids"]).contiguous()
        model(**inputs, labels=labels).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any(name.endswith((".c_fc.weight", ".wi.weight", "intermediate.dense.weight")) for name in grads[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


@pytest.mark.parametrize("family", ["gpt2", "switch_transformers"])
def test_generation_with_and_without_cache(family):
    fused = fuse_model(tiny_model(family), CONFIG)
    ids = torch.arange(2, 8)[None]
    outputs = [
        fused.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*outputs)
    assert outputs[0].shape[1] > 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(implementation):
    fused = fuse_model(tiny_model("roberta"), CONFIG)
    expected = first_output(fused)
    fused.set_attn_implementation(implementation)
    torch.testing.assert_close(first_output(fused), expected)


def test_tied_weights_stay_tied(fused, tmp_path):
    stock_ties = fused.all_tied_weights_keys
    fused.save_pretrained(tmp_path)
    reloaded = type(fused).from_pretrained(tmp_path)
    assert reloaded.all_tied_weights_keys == stock_ties
    for model in (fused, reloaded):
        if model.get_output_embeddings() is not None:
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_scaling_is_no_parameter(fused):
    assert not [name for name, _ in fused.named_parameters() if "cluster" in name]
    scalings = [name for name, _ in fused.named_buffers() if name.endswith("cluster_sizes")]
    assert len(scalings) == sum(isinstance(module, FusedMLP) for module in fused.modules())


def test_bfloat16_keeps_large_cluster_sizes():
    """257 is not a bfloat16; as integers it survives the cast."""
    model = tiny_model("gpt2", n_inner=512)
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :257] = block.mlp.c_fc.weight[:, :1]
            block.mlp.c_fc.bias[:257] = block.mlp.c_fc.bias[:1]
            block.mlp.c_proj.weight[:257] = block.mlp.c_proj.weight[:1]
    fused = fuse_model(model, FusionConfig(width=256)).to(torch.bfloat16)
    assert max(int(block.mlp.cluster_sizes.max()) for block in fused.transformer.h) == 257
    assert first_output(fused).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")  # they name tensors
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_loading(family, tmp_path):
    """Part of the model on disk, weights fetched layer by layer: the same output."""
    fused = fuse_model(tiny_model(family), CONFIG)
    fused.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    layer_lists = {name for name, module in fused.named_modules() if isinstance(module, torch.nn.ModuleList)}
    tensors = [name for name, _ in [*fused.state_dict().items(), *fused.named_buffers()]]
    device_map = {name: "cpu" for name in tensors if not name.startswith(tuple(f"{top}." for top in layer_lists))}
    tops = [name for name in layer_lists if not any(name.startswith(f"{other}.") for other in layer_lists)]
    device_map |= dict.fromkeys(tops, "disk")
    loaded = type(fused).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload", disable_mmap=True
    )
    assert any(parameter.is_meta for parameter in loaded.parameters())
    torch.testing.assert_close(first_output(loaded), first_output(fused))


def test_print_shows_widths(fused):
    assert "64 -> 16 units" in repr(fused)
    assert "Fused" in repr(fused)


def test_pipelines(tmp_path):
    """`pipeline` reads the config first, and so finds the fused classes."""
    model = fuse_model(tiny_model("bert", transformers.BertForSequenceClassification), CONFIG)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    result = transformers.pipeline("text-classification", model=str(tmp_path))("hello")
    assert result[0]["label"].startswith("LABEL_")
