"""Broken checkpoints raise; they never load as garbage."""

import json

import pytest
import torch
import transformers
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, FusionConfigError, fuse_model

P = "transformer.h.1.mlp.act.cluster_sizes"


@pytest.fixture
def folder(tmp_path):
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(tmp_path)
    return tmp_path


def load(folder, **kwargs):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs)


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def change(tensor, index, value):
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda w: w.pop(P), rf"lacks '{P}'"),
        (lambda w: w.pop("transformer.h.1.mlp.c_fc.weight"), r"lacks 'transformer\.h\.1\.mlp\.c_fc\.weight'"),
        (lambda w: w.update({P: w[P].float()}), "stored as F32, cluster sizes are integers"),
        (lambda w: w.update({P: w[P] + 0.5}), "cluster sizes are integers"),
        (lambda w: w.update({P: torch.ones(16, dtype=torch.bool)}), "stored as BOOL, cluster sizes are integers"),
        (lambda w: w.update({P: change(w[P].clone(), 0, -1)}), "holds -1, cluster sizes are positive"),
        (lambda w: w.update({P: change(w[P].clone(), 0, 0)}), "holds 0, cluster sizes are positive"),
        (lambda w: w.update({P: w[P] + 1}), "sums to 80, the layer had 64 units"),
        (lambda w: w.update({P: w[P][:15].clone()}), rf"has in another shape '{P}'"),
    ],
)
def test_broken_weights(folder, edit, fault):
    edit_weights(folder, edit)
    with pytest.raises(BrokenCheckpointError, match=fault):
        load(folder)
    # A user's wish for another head must not let fused FFNs through.
    with pytest.raises(BrokenCheckpointError, match=fault):
        load(folder, ignore_mismatched_sizes=True)


def test_int64_sizes_are_integers_too(folder):
    edit_weights(folder, lambda w: w.update({P: w[P].long()}))
    assert load(folder).transformer.h[1].mlp.cluster_sizes.sum() == 64


def test_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match="incomplete metadata, file not fully covered"):
        load(folder)


def test_missing_shard(tmp_path):
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(tmp_path, max_shard_size="8KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(OSError, match="00002"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda c: c.pop("mlp_fusion"), r"has none.*Fuse it first"),
        (lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].update(width=8), "another shape.* says 8 units"),
        (lambda c: c["mlp_fusion"]["ffns"].pop("h.1.mlp"), "names no such FFN"),
        (
            lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].update(original_width=128),
            r"'h\.1\.mlp' had 128 units.*make it 64",
        ),
        (lambda c: c.update(n_inner=128), r"had 64 units.*make it 128"),
        (
            lambda c: c["mlp_fusion"]["ffns"].update({"h.7.mlp": {"width": 16, "original_width": 64}}),
            r"lacks 'transformer\.h\.7\.mlp",
        ),
        (lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].update(width=65), "65 units cannot stand for 64"),
        (lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].update(width=1.5), "1.5 is no number of hidden units"),
        (lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].update(original_width=10**12), "no number of hidden units"),
        (lambda c: c["mlp_fusion"]["ffns"]["h.1.mlp"].pop("width"), "must have the fields width and original_width"),
        (lambda c: c["mlp_fusion"].update(ffns=[]), "must be objects"),
        (lambda c: c["mlp_fusion"].update(recipe=3), "recipe"),
        (lambda c: c["mlp_fusion"]["recipe"].update(width=0), "recipe: width=0 keeps nothing"),
        (lambda c: c.update(mlp_fusion="x"), "must have the fields recipe, source and ffns"),
    ],
)
def test_config_that_disagrees(folder, edit, fault):
    edit_config(folder, edit)
    with pytest.raises(BrokenCheckpointError, match=fault):
        load(folder)


def test_config_of_a_newer_version(folder):
    edit_config(folder, lambda c: c["mlp_fusion"]["recipe"].update(version=99, magic=True))
    with pytest.raises(FusionConfigError, match=r"pip install -U hf_mlp_fusion"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ffns": 3}', "\xff"])
def test_an_illegible_receipt_does_not_stop_the_model(folder, caplog, text):
    (folder / "fusion_report.json").write_text(text, encoding="latin-1")
    assert load(folder).fusion_report is None
    assert "receipt" in caplog.text


@pytest.mark.parametrize("sizes", [torch.full((16,), 4.5), torch.full((16,), 5), torch.full((16,), 0)])
def test_load_state_dict_checks_too(folder, sizes):
    """Trainer resumes by `load_state_dict`, without `from_pretrained`."""
    model = load(folder)
    with pytest.raises(BrokenCheckpointError, match="cluster_sizes' is broken"):
        model.load_state_dict(model.state_dict() | {P: sizes})


def test_fused_class_on_a_stock_folder(tmp_path):
    from hf_mlp_fusion import modeling

    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(BrokenCheckpointError, match=r"needs a config with an mlp_fusion section.*fuse_model"):
        modeling.FusedGPT2LMHeadModel.from_pretrained(tmp_path)
