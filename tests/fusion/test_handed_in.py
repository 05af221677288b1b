"""Models that are not what their class and config build: kept as they are, or refused before any work."""

import copy

import pytest
import torch
import transformers
from conftest import first_output, tiny_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, export_plain, fuse_model
from hf_mlp_fusion.baselines import METHODS, reduce_model
from hf_mlp_fusion.modeling.find import find_ffns

CONFIG = FusionConfig(width=16)
CLASSIFIER = transformers.BertForSequenceClassification


# Kept


def _body_of_a_head():
    return tiny_model("bert").bert


def _no_pooler():
    return transformers.BertModel(tiny_model("bert").config, add_pooling_layer=False).eval()


def _pooler_taken_out():
    model = tiny_model("roberta", transformers.RobertaModel)
    model.pooler = None
    return model


def _body_of_a_causal_model():
    return tiny_model("gpt2").transformer


@pytest.mark.parametrize("make", [_body_of_a_head, _no_pooler, _pooler_taken_out, _body_of_a_causal_model])
def test_parts_that_are_none_stay_none(make, tmp_path, caplog):
    model = make()
    full = fuse_model(model, FusionConfig(width=64))
    assert first_output(full).equal(first_output(model))
    fused = fuse_model(model, CONFIG)
    assert getattr(fused, "pooler", None) is None
    assert {name for name in fused.state_dict() if "cluster_sizes" not in name} == set(model.state_dict())
    assert "newly initialized" not in caplog.text
    fused.save_pretrained(tmp_path)
    again = type(fused).from_pretrained(tmp_path)
    assert first_output(again).equal(first_output(fused))
    export_plain(fused, tmp_path / "plain")
    plain = type(model).from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(first_output(plain), first_output(fused), rtol=1e-4, atol=1e-5)


def test_mixed_dtypes_stay():
    model = tiny_model("bert").to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float().weight.data.add_(1e-4)  # which bfloat16 would round away
    wanted = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert set(wanted.values()) == {torch.bfloat16, torch.float32}
    fused = fuse_model(model, CONFIG)
    found = fused.state_dict()
    assert {name: tensor.dtype for name, tensor in found.items() if "cluster_sizes" not in name} == wanted
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert found[name].equal(model.state_dict()[name])
    assert fused.dtype == model.dtype


class _WithPart(CLASSIFIER):
    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(16, 16)
        self.post_init()


def test_own_classes_keep_their_own_parts():
    torch.manual_seed(0)
    model = _WithPart(tiny_model("bert").config)
    fused = fuse_model(model, CONFIG)
    assert fused.extra.weight.equal(model.extra.weight)


# Refused


class _OtherInit(CLASSIFIER):
    def __init__(self, config, labels):
        super().__init__(config)


def _other_init():
    return _OtherInit(tiny_model("bert").config, labels=3)


def _changed(change, head=CLASSIFIER):
    def make():
        model = tiny_model("bert", head)
        change(model)
        return model

    return make


def _set(path, value):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, value)

    return change


def _untie(model):
    model.cls.predictions.decoder.weight = nn.Parameter(model.cls.predictions.decoder.weight.clone() + 1)


def _replace_forward(model):
    model.bert.forward = lambda *args, **kwargs: None


MLM = transformers.BertForMaskedLM
LAYERS = "bert.encoder.layer"
REFUSED = {
    "another classifier": (
        _changed(_set("classifier", nn.Sequential(nn.Linear(16, 2)))),
        "classifier is a Sequential",
    ),
    "no classifier": (_changed(_set("classifier", nn.Identity())), "classifier is a Identity, where .* has a Linear"),
    "a wider classifier": (_changed(_set("classifier", nn.Linear(16, 5))), r"classifier.bias is \[5\], and \[2\] by"),
    "a bias less": (_changed(_set("classifier", nn.Linear(16, 2, bias=False))), "classifier.bias is not there, and"),
    "an added part": (_changed(_set("adapter", nn.Linear(16, 16))), r"adapter \(Linear\) is none of the parts"),
    "an added part without weights": (
        _changed(_set("extra", nn.Dropout())),
        r"extra \(Dropout\) is none of the parts",
    ),
    "a buffer": (_changed(lambda m: m.register_buffer("mean", torch.zeros(3))), r"mean is \[3\], and not there by"),
    "fewer layers": (
        _changed(lambda m: _set(LAYERS, m.bert.encoder.layer[:2])(m)),
        "bert.encoder.layer.2 is missing, and the config says",
    ),
    "another activation": (
        _changed(_set(f"{LAYERS}.1.intermediate.intermediate_act_fn", nn.ReLU())),
        "layer.1.intermediate.intermediate_act_fn is a ReLU, where .* has a GELUActivation",
    ),
    "weight norm": (_changed(lambda m: weight_norm(m.classifier)), "classifier is a ParametrizedLinear, where"),
    "untied embeddings": (_changed(_untie, MLM), "are one tensor by the config, .*tie_word_embeddings to False"),
    "another forward": (_changed(_replace_forward), "the forward of bert was replaced: fuse the model before that"),
    "another __init__": (_other_init, "_OtherInit cannot be built from its config alone .*let its __init__ take"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_any_work_and_nothing_is_taken(what):
    make, message = REFUSED[what]
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for work in (fuse_model, reduce_model):
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            work(model, CONFIG)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedModelError, match=message):
        fuse_model(model, CONFIG, inplace=True)
    assert {name: tensor.device.type for name, tensor in model.state_dict().items()} == dict.fromkeys(before, "cpu")
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses(method):
    model = REFUSED["another classifier"][0]()
    with pytest.raises(UnsupportedModelError, match="classifier is a Sequential"):
        reduce_model(model, CONFIG, method, calibration=[{"input_ids": torch.arange(5, 25).repeat(20, 1)}])


def test_exports_refuse_a_fused_model_that_was_changed(tmp_path):
    fused = fuse_model(tiny_model("bert", CLASSIFIER), CONFIG)
    fused.classifier = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="classifier is a Identity"):
        export_plain(fused, tmp_path / "plain")
    assert not any(tmp_path.iterdir())


def test_what_the_config_says_too_is_no_fault():
    model = tiny_model("bert", MLM)
    model.resize_token_embeddings(120)
    assert fuse_model(model, CONFIG).get_input_embeddings().weight.shape == (120, 16)
    model.config.num_hidden_layers = 2
    model.bert.encoder.layer = model.bert.encoder.layer[:2]
    assert len(list(find_ffns(fuse_model(model, CONFIG)))) == 2
    model.config.tie_word_embeddings = False
    _untie(model)
    fused = fuse_model(model, CONFIG)
    assert fused.cls.predictions.decoder.weight.equal(model.cls.predictions.decoder.weight)
    assert not fused.cls.predictions.decoder.weight.equal(fused.get_input_embeddings().weight)
    assert fuse_model(copy.deepcopy(model), CONFIG).state_dict().keys() == fused.state_dict().keys()
