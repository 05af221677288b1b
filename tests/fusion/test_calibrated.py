"""Fusion with calibration data: moments from a running model, refit, selection."""

import logging

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, tiny_model
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, FusionConfigError, FusionWarning, fuse_model
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.fusion.calibration import calibration_batches, collect_moments, hold_out
from hf_mlp_fusion.measure import language_loss, output_error
from hf_mlp_fusion.modeling.find import find_ffns

FAMILIES = sorted(TINY_CONFIGS)
ONE_KIND_EACH = [
    "gpt2",
    "roberta",
    pytest.param("switch_transformers", marks=pytest.mark.every),
    pytest.param("bert", marks=pytest.mark.every),
]
CLASSIFIER = transformers.BertForSequenceClassification


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_ffns_tokens(family):
    """Against a plain run that keeps every token; padding left out, experts on their own tokens."""
    model = tiny_model(family)
    data = batches(model)
    ffns = list(find_ffns(model))
    found = collect_moments(model, ffns, data)
    seen = {ffn.name: [] for ffn in ffns}
    hooks = []
    for ffn in ffns:

        def keep(module, arguments, output, name=ffn.name):
            seen[name].append((arguments[0].flatten(0, -2), output.flatten(0, -2)))

        hooks.append(ffn.host.get_submodule(ffn.spec.down).register_forward_hook(keep))
    with torch.no_grad():
        for batch in data:
            for row in range(4):
                real = int(batch["attention_mask"][row].sum())
                one = {k: v[row : row + 1] for k, v in batch.items() if k != "labels"}
                one |= {k: one[k][:, :real] for k in ("input_ids", "attention_mask")}
                model(**one)
    for hook in hooks:
        hook.remove()
    for ffn in ffns:
        h, y = (torch.cat(parts).double() for parts in zip(*seen[ffn.name], strict=True))
        moments = found[ffn.name]
        assert moments.count == len(h)
        if ffn.read().down_bias is not None:
            h, y = h - h.mean(0), y - y.mean(0)
        torch.testing.assert_close(moments.gram, h.T @ h / len(h), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(moments.cross, h.T @ y / len(h), rtol=1e-3, atol=1e-5)


def test_no_forward_goes_further_than_the_last_ffn():
    model = tiny_model("bert")
    ran = []
    model.bert.encoder.layer[1].register_forward_hook(lambda *_: ran.append(1))
    model.bert.encoder.layer[2].register_forward_pre_hook(lambda *_: ran.append(2))
    collect_moments(model, list(find_ffns(model))[:2], batches(model, count=2))
    assert ran == [1, 1]


@pytest.mark.parametrize("memory", [2**31, 1], ids=["at once", "layer by layer"])
@pytest.mark.parametrize(
    "family", ["bert", "gpt2", "roberta", pytest.param("switch_transformers", marks=pytest.mark.every)]
)
def test_each_step_of_the_recipe_lowers_the_output_error(family, memory, monkeypatch):
    monkeypatch.setattr("hf_mlp_fusion.fusion.layer_fuser._MOMENT_BYTES", memory)
    model = tiny_model(family)
    data = batches(model, count=8 if model.config.is_encoder_decoder else 40)
    errors = []
    for fields in ({"selection": "clusters", "refit": "none"}, {"selection": "clusters"}, {}):
        config = FusionConfig(width=16, targets="all", **fields)
        fused = fuse_model(model, config, calibration=None if len(errors) == 0 else data)
        errors.append(output_error(model, fused, data).mean)
    assert errors[0] > 1.05 * errors[1]
    assert errors[1] > errors[2]


def test_bias_refit_matches_the_mean_output():
    model = tiny_model("bert")
    data = batches(model)
    fused = fuse_model(model, FusionConfig(width=16, layers=[0], refit="bias"), calibration=data)
    before, after = next(find_ffns(model)), next(find_ffns(fused))
    data, _ = hold_out(data)
    x = torch.cat([model.bert.embeddings(b["input_ids"])[b["attention_mask"].bool()] for b in data])
    # Layer 0 sees the same inputs in both models, so only the FFN's own mean counts.
    inputs = []
    hook = before.host.get_submodule("intermediate.dense").register_forward_pre_hook(lambda m, a: inputs.append(a[0]))
    with torch.no_grad():
        for b in data:
            model(**b)
        hook.remove()
        tokens = torch.cat([i[b["attention_mask"].bool()] for i, b in zip(inputs, data, strict=True)])
        torch.testing.assert_close(after.outputs(tokens).mean(0), before.outputs(tokens).mean(0), rtol=1e-4, atol=1e-5)
    assert len(tokens) == len(x)
    assert fused.fusion_report.ffns[0].method == "clusters+bias"
    assert fused.fusion_report.ffns[0].tokens == len(tokens)


@pytest.mark.parametrize("family", ONE_KIND_EACH)
def test_full_width_stays_the_identity(family):
    model = tiny_model(family)
    config = FusionConfig(width=64, targets="all")
    fused = fuse_model(model, config, calibration=batches(model, count=40))
    torch.testing.assert_close(first_output(fused), first_output(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ONE_KIND_EACH)
def test_same_input_same_bits(family):
    model = tiny_model(family)
    first, second = (
        fuse_model(model, FusionConfig(width=16), calibration=batches(model)).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_in_place_gives_the_same():
    data = batches(tiny_model("gpt2"))
    expected = fuse_model(tiny_model("gpt2"), FusionConfig(width=16), calibration=data)
    model = tiny_model("gpt2")
    fused = fuse_model(model, FusionConfig(width=16), calibration=data, inplace=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(first_output(fused), first_output(expected))
    assert fused.config.mlp_fusion == expected.config.mlp_fusion


def test_the_original_is_untouched():
    model = tiny_model("gpt2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse_model(model, FusionConfig(width=16), calibration=batches(model))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_experts_without_tokens_are_fused_without_data(caplog):
    model = tiny_model("switch_transformers")
    with torch.no_grad():  # one router sends every token to expert 0
        router = model.encoder.block[1].layer[1].mlp.router.classifier.weight
        router.zero_()
    with caplog.at_level(logging.WARNING, "hf_mlp_fusion"):
        fused = fuse_model(model, FusionConfig(width=16), calibration=batches(model))
    methods = {report.name: (report.method, report.tokens) for report in fused.fusion_report.ffns}
    assert methods["encoder.block.1.layer.1.mlp.experts.expert_3"] == ("clusters", 0)
    assert methods["encoder.block.1.layer.1.mlp.experts.expert_0"][0] == "obs+output"
    assert "expert_3 saw no calibration token" in caplog.text
    assert torch.isfinite(first_output(fused)).all()


def test_p_counts_the_units_that_each_kept_one_stands_for():
    model = tiny_model("bert")
    fused = fuse_model(model, FusionConfig(width=16, ntk="none"), calibration=batches(model))
    for before, after in zip(find_ffns(model), find_ffns(fused), strict=True):
        sizes = after.owner.cluster_sizes
        assert sizes.sum() == 64
        assert sizes.min() >= 1
        rows = {tuple(row) for row in before.read().up.tolist()}
        assert all(tuple(row) in rows for row in after.read().up.tolist())  # real units


# What calibration may be


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return transformers.BertTokenizer(str(tmp_path / "vocab.txt"))


TEXTS = ["a b c d e", "b c", "d e a a b c d", "e", "c b a"] * 4


def test_texts_files_and_data_sets_are_alike(tokenizer, tmp_path):
    import datasets

    model = tiny_model("bert", CLASSIFIER)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    made = [
        calibration_batches(model, given, tokenizer)
        for given in (TEXTS, tmp_path / "texts.txt", datasets.Dataset.from_dict({"sentence": TEXTS}), iter(TEXTS))
    ]
    for other in made[1:]:
        assert all(torch.equal(x[k], y[k]) for x, y in zip(made[0], other, strict=True) for k in x)


def test_the_tokenizer_beside_the_model_is_found(tokenizer, tmp_path):
    tiny_model("bert", CLASSIFIER).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    model = CLASSIFIER.from_pretrained(tmp_path / "m")
    assert fuse_model(model, FusionConfig(width=16), calibration=TEXTS).fusion_report.ffns[0].method == "obs+output"


def test_labels_alone_feed_the_decoder():
    """As a data collator for sequence-to-sequence models gives them."""
    model = tiny_model("switch_transformers")
    labels = torch.tensor([[5, 6, 7, -100], [8, 9, 10, 11]])
    (batch,) = calibration_batches(model, [{"input_ids": torch.arange(2, 12).view(2, 5), "labels": labels}])
    assert batch["decoder_input_ids"].tolist() == [[0, 5, 6, 7], [0, 8, 9, 10]]
    assert torch.equal(batch["decoder_input_ids"], model._shift_right(labels))
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    shorter = labels.masked_fill(labels == 7, -100)
    given = {"input_ids": batch["input_ids"], "labels": shorter, "decoder_input_ids": model._shift_right(shorter)}
    (other,) = calibration_batches(model, [given])
    assert torch.equal(other["decoder_input_ids"], given["decoder_input_ids"])
    assert other["decoder_attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    with pytest.warns(FusionWarning, match="saw . calibration tokens for 16 units"):
        fused = fuse_model(model, FusionConfig(width=16), calibration=[batch])
    assert fused.fusion_report.ffns[-1].tokens > 0


@pytest.mark.parametrize(
    ("calibration", "mend"),
    [([], "calibration is empty"), ([3], "item 1 is of type int: give texts or batches"), (TEXTS, "pass tokenizer=")],
)
def test_what_calibration_may_not_be(calibration, mend):
    with pytest.raises(DataError, match=mend):
        fuse_model(tiny_model("bert"), FusionConfig(width=16), calibration=calibration)


@pytest.mark.parametrize(
    ("fields", "calibrated", "mend"),
    [
        ({"selection": "obs"}, False, "selection='obs' needs calibration data: pass calibration="),
        ({"refit": "output"}, False, "refit='output' needs calibration data"),
        ({"refit": "bias"}, False, "refit='bias' needs calibration data"),
        ({"ntk": "match"}, False, "ntk='match' needs calibration data"),
        ({"selection": "obs", "refit": "none"}, True, "write refit='output'"),
        ({"refit": "none"}, True, "have no use"),
    ],
)
def test_recipes_and_data_that_do_not_fit(fields, calibrated, mend):
    model = tiny_model("bert")
    with pytest.raises(FusionConfigError, match=mend):
        fuse_model(model, FusionConfig(width=16, **fields), calibration=batches(model) if calibrated else None)


def test_a_language_model_stays_near_its_loss():
    model = tiny_model("gpt2")
    data = [{**batch, "labels": batch["input_ids"]} for batch in batches(model, count=40)]
    losses = [
        language_loss(fuse_model(model, FusionConfig(width=16), calibration=given), data).loss
        for given in (None, data)
    ]
    original = language_loss(model, data).loss
    assert abs(losses[1] - original) < abs(losses[0] - original)
