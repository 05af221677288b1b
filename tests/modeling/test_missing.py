"""What a user names by mistake, or has only half of, is refused in one line, and never fused as noise."""

import json
import os

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from hf_mlp_fusion.bench.glue import GLUE_BENCH
from hf_mlp_fusion.bench.webnlg_data import read_webnlg
from hf_mlp_fusion.data import read_texts
from hf_mlp_fusion.errors import BrokenCheckpointError, DataError, FusionConfigError
from hf_mlp_fusion.files import locate_file
from hf_mlp_fusion.modeling.loading import load_for_task, load_stock_model, read_config


@pytest.fixture
def folder(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def without(folder, *names):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k not in names}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.1.intermediate.dense.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
        "cls.predictions.transform.dense.weight",
    ],
)
def test_weights_that_are_missing_are_refused_by_name(cli, folder, tmp_path, name):
    without(folder, name)
    code, _, err = cli("fuse", folder, tmp_path / "out", "--width", "32")
    assert code == 1
    assert f"lacks '{name}', which would be random numbers" in err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_wrong_type_is_refused(folder):
    """Not one weight of the file is the model's."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenCheckpointError, match=r"lacks 'lm_head.* and \d+ more"):
        load_stock_model(str(folder))


def test_a_new_head_is_no_loss_but_a_missing_layer_is(folder):
    model = load_for_task(AutoModelForSequenceClassification, str(folder), num_labels=3)
    assert model.classifier.weight.shape[0] == 3
    without(folder, "bert.encoder.layer.2.output.dense.bias")
    with pytest.raises(BrokenCheckpointError, match=r"lacks 'bert\.encoder\.layer\.2\.output\.dense\.bias'"):
        load_for_task(AutoModelForSequenceClassification, str(folder), num_labels=3)


def test_a_whole_model_loads_as_it_was(folder):
    model, again = tiny_model("bert"), load_stock_model(str(folder))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_file_without_permission_says_so(folder, monkeypatch):
    (folder / "model.safetensors").write_bytes(b"")  # as root, these tests may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("model.safetensors"))
    with pytest.raises(FusionConfigError, match=r"model\.safetensors may not be read: give its reader the permission"):
        load_stock_model(str(folder))


@pytest.mark.parametrize("name", ["C:\\models\\bert", "foo bar", "", "bert@main", "~/bert", "a/b/c", "--width"])
@pytest.mark.parametrize("look", [read_config, load_stock_model, lambda name: locate_file(name, "config.json")])
def test_what_is_no_folder_and_no_hub_id_is_one_line(name, look):
    with pytest.raises(FusionConfigError, match="no such folder; give a model folder or a Hub id"):
        look(name)


@pytest.fixture
def no_network(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the name left the machine"))


@pytest.mark.parametrize("name", ["nope.txt", "hello", "texts", "./texts", "data/nope.csv", "a b", "nope.tar"])
def test_a_mistyped_file_is_not_looked_up_on_the_hub(no_network, name):
    with pytest.raises(DataError, match="there is no such file"):
        read_texts(name)


def test_a_folder_of_texts_is_called_one(no_network, tmp_path):
    with pytest.raises(DataError, match="it is a folder: name a file in it"):
        read_texts(tmp_path)


@pytest.mark.parametrize("name", ["nope", "./nope", "data/nope/deeper"])
def test_mistyped_data_of_a_bench_are_not_looked_up_on_the_hub(no_network, name):
    with pytest.raises(DataError, match="there is no folder"):
        GLUE_BENCH.load_data("sst2", name, None)
    with pytest.raises(DataError, match="there is no folder of that name"):
        read_webnlg(name)
