"""What commands load is whole, or refused by name: nothing is made up, and no fault is told as another."""

import json
import logging

import pytest
import transformers
from conftest import first_output, tiny_model
from safetensors.torch import load_file, save_file
from tiny_adapters import fused_model
from tiny_text import tiny_tokenizer
from unreadable import unreadable

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, FusionWarning, UnsupportedModelError, fuse_model
from hf_mlp_fusion.modeling.loading import load_fused_model, load_stock_model, load_whole


def drop(folder, *names):
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(names)}, path, metadata={"format": "pt"})


@pytest.fixture
def stock(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.1.intermediate.dense.weight",
        "bert.encoder.layer.2.attention.self.query.bias",
        "bert.embeddings.LayerNorm.weight",
        "cls.predictions.transform.dense.weight",
    ],
)
@pytest.mark.parametrize("verb", ["fuse", "compare", "tune"])
def test_missing_weights(verb, name, cli, stock, tmp_path):
    drop(stock, name)
    texts = tmp_path / "texts.txt"
    texts.write_text("a\nb\n")
    if verb == "tune":
        fuse_model(tiny_model("bert"), FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
        tiny_tokenizer("bert").save_pretrained(tmp_path / "fused")
        arguments = ("tune", tmp_path / "fused", tmp_path / "out", "--teacher", stock, "--texts", texts)
    elif verb == "compare":
        arguments = ("compare", stock, "--out", tmp_path / "out", "--texts", texts)
    else:
        arguments = ("fuse", stock, tmp_path / "out", "--width", "16")
    code, _, err = cli(*arguments)
    assert code == 1
    assert f"of BertForMaskedLM, '{name}', and random ones would take" in err
    assert not (tmp_path / "out").exists()


def test_another_model_type(cli, stock, tmp_path):
    path = stock / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model_type": "roberta", "architectures": ["RobertaModel"]})
    )
    code, _, err = cli("fuse", stock, tmp_path / "out", "--width", "16")
    assert code == 1
    assert "model_type, architectures" in err
    assert not (tmp_path / "out").exists()


def test_a_fused_model_without_its_attention(tmp_path):
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(tmp_path)
    drop(tmp_path, "transformer.h.1.attn.c_attn.weight")
    with pytest.raises(BrokenCheckpointError, match=r"lacks 1 of .* weights of FusedGPT2LMHeadModel"):
        load_fused_model(str(tmp_path))


def test_a_new_head_is_no_loss_and_a_missing_pooler_is_told(stock, tmp_path):
    head = load_whole(transformers.AutoModelForSequenceClassification, str(stock), new_head=True)
    assert type(head) is transformers.BertForSequenceClassification
    drop(stock, "bert.encoder.layer.1.output")
    with pytest.raises(BrokenCheckpointError, match="lacks 4 of"):
        load_whole(transformers.AutoModelForSequenceClassification, str(stock), new_head=True)

    transformers.BertModel(tiny_model("bert").config, add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    with pytest.warns(FusionWarning, match=r"no weights for pooler.dense.bias, pooler.dense.weight"):
        load_stock_model(str(tmp_path / "encoder"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_that_may_not_be_read(name, cli, stock, tmp_path):
    with unreadable(stock / name):
        code, _, err = cli("fuse", stock, tmp_path / "out", "--width", "16")
    assert code == 1
    assert f"{name} may not be read: give yourself permission" in err


def test_fused_files_that_may_not_be_read(cli, tmp_path):
    fuse_model(tiny_model("bert"), FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    with unreadable(tmp_path / "fused" / "model.safetensors"):
        code, _, err = cli("push", tmp_path / "fused", "a/b", "--dry-run")
    assert code == 1
    assert "model.safetensors may not be read" in err


def test_a_shard_that_is_not_there_is_no_pickle(stock):
    model = load_stock_model(str(stock))
    (stock / "model.safetensors").unlink()
    model.save_pretrained(stock, max_shard_size="10KB")
    next(stock.glob("model-*")).unlink()
    with pytest.raises(BrokenCheckpointError, match="could not be loaded"):
        load_stock_model(str(stock))


def test_no_safetensors_at_all(stock):
    (stock / "model.safetensors").rename(stock / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="has no safetensors weights"):
        load_stock_model(str(stock))


@pytest.mark.parametrize("size", ["10KB", "50GB"])
@pytest.mark.parametrize("variant", [None, "fp16", "a-b.c"])
def test_variants_single_and_sharded(size, variant, tmp_path):
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    fused.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, variant=variant)
    assert first_output(again).equal(first_output(fused))


def test_a_variant_that_was_not_asked_for(tmp_path):
    fuse_model(tiny_model("bert"), FusionConfig(width=16)).save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(
        BrokenCheckpointError, match=r"has no model.safetensors, but model.fp16.safetensors: give its v"
    ):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_a_variant_in_a_subfolder(tmp_path):
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    fused.save_pretrained(tmp_path / "sub", max_shard_size="10KB", variant="fp16")
    again = type(fused).from_pretrained(tmp_path, subfolder="sub", variant="fp16")
    assert first_output(again).equal(first_output(fused))


@pytest.mark.parametrize("size", ["10KB", "50GB"])
def test_weights_that_the_config_names(size, cli, tmp_path):
    """The file that is loaded is the one that is checked."""
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    fused.save_pretrained(tmp_path, max_shard_size=size)
    ending = "safetensors" if size == "50GB" else "safetensors.index.json"
    (tmp_path / f"model.{ending}").rename(tmp_path / f"mine.{ending}")
    config = json.loads((tmp_path / "config.json").read_text())
    for name, fault in (
        (f"mine.{ending}", None),
        ("../mine.safetensors", "which is no safetensors"),
        ("mine.bin", "which is no safetensors"),
        ("other.safetensors", "has no other.safetensors"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        if fault is None:
            assert first_output(type(fused).from_pretrained(tmp_path)).equal(first_output(fused))
        else:
            with pytest.raises(BrokenCheckpointError, match=fault):
                type(fused).from_pretrained(tmp_path)
    assert "save it anew" in cli("push", tmp_path, "a/b", "--dry-run")[2]


def test_a_body_under_the_name_of_a_head_is_loaded_as_the_body(tmp_path):
    """Sentence encoders often name the head that they were pretrained with."""
    model = tiny_model("bert")
    model.bert.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    try:
        with pytest.warns(FusionWarning, match="pooler"):  # a masked language model has none
            loaded = load_stock_model(str(tmp_path))
        assert "cls.predictions" not in "".join(said)  # a head that is MISSING frightens
        load_whole(transformers.AutoModelForSequenceClassification, str(tmp_path), new_head=True, num_labels=2)
        assert "classifier.weight" in "".join(said)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert type(loaded).__name__ == "BertModel"
    weights = model.bert.state_dict()
    assert all(tensor.equal(loaded.state_dict()[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_with_fewer_layers(tmp_path, family):
    """As stock models can be: PEFT's ShadowPEFT builds a body of one layer from the config, others load the first."""
    fused = fused_model(family)
    fused.save_pretrained(tmp_path / "whole")
    config = type(fused.config).from_pretrained(tmp_path / "whole", num_hidden_layers=2)
    loaded = type(fused).from_pretrained(tmp_path / "whole", num_hidden_layers=2)
    kept = [name for name in fused.config.mlp_fusion["ffns"] if ".2" not in name]
    for cut in (loaded, type(fused)(config).eval()):
        assert len(kept) == 2
        assert sorted(cut.config.mlp_fusion["ffns"]) == kept
        assert cut.fusion_report is None  # it is that of three
        cut.save_pretrained(tmp_path / "cut")
        assert first_output(type(fused).from_pretrained(tmp_path / "cut")).equal(first_output(cut))
    weights = fused.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in loaded.state_dict().items())
