"""Save, and load by the Auto classes in a fresh process: every family and head, single and sharded files, bfloat16."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, tiny_model
from safetensors import safe_open

from hf_mlp_fusion import FusionConfig, fuse_model, modeling
from hf_mlp_fusion.families.compat import auto_model_classes

CONFIG = FusionConfig(width=16, targets="all")
CASES = [
    (f"{auto.__name__}-{family}", auto.__name__, family, mapping[type(config)], {}, {})
    for family, config in TINY_CONFIGS.items()
    for auto, mapping in auto_model_classes()
    if type(config) in mapping
]
LM_CLASSES = {
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForMaskedLM",
    "gpt2": "AutoModelForCausalLM",
    "switch_transformers": "AutoModelForSeq2SeqLM",
}
for family, auto in LM_CLASSES.items():
    CASES += [
        (f"sharded-{family}", auto, family, None, {"max_shard_size": "8KB"}, {}),
        (f"bfloat16-{family}", auto, family, None, {}, {"dtype": "bfloat16"}),
    ]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Fuses and saves every case, then loads them all in one fresh process; gives models and result files."""
    root = tmp_path_factory.mktemp("roundtrip")
    jobs, models = [], {}
    for name, auto, family, head, save_kwargs, load_kwargs in CASES:
        model = fuse_model(tiny_model(family, head), CONFIG)
        model.save_pretrained(root / name, **save_kwargs)
        models[name] = model
        jobs.append(
            {"auto": auto, "folder": str(root / name), "out": str(root / f"{name}.safetensors"), "kwargs": load_kwargs}
        )
    (root / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "fresh_process.py", root / "jobs.json"],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return root, models


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_fresh_process_gives_the_same_bits(reloaded, case):
    root, models = reloaded
    name, _, _, _, save_kwargs, load_kwargs = case
    model = models[name]
    if load_kwargs:
        model = model.to(torch.bfloat16)
    assert (len(list((root / name).glob("*.safetensors"))) > 1) == bool(save_kwargs)
    with safe_open(root / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        assert metadata["class"] == type(model).__name__
        assert metadata["dtype"] == str(model.dtype)
        assert metadata["report"] == model.fusion_report.to_json()
        sizes = {key: tensor for key, tensor in model.state_dict().items() if key.endswith("cluster_sizes")}
        assert {key for key in file.keys() if key != "output"} == set(sizes)  # noqa: SIM118 (no iterator)
        for key, tensor in sizes.items():
            assert torch.equal(file.get_tensor(key), tensor)
        assert torch.equal(file.get_tensor("output"), first_output(model))


def test_another_head_from_a_fused_classifier(tmp_path):
    classifier = fuse_model(tiny_model("roberta", transformers.RobertaForSequenceClassification), CONFIG)
    classifier.save_pretrained(tmp_path)
    # The new head's weights are new, the fused body's are the saved ones.
    other = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    assert type(other).__name__ == "FusedRobertaForTokenClassification"
    body = other.roberta.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in classifier.roberta.state_dict().items())
    assert first_output(other).shape[-1] == 5


def test_another_number_of_labels(tmp_path):
    fuse_model(tiny_model("bert", transformers.BertForSequenceClassification), CONFIG).save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert first_output(model).shape[-1] == 7


def test_encoder_alone_from_a_fused_encoder_decoder(tmp_path):
    fused = fuse_model(tiny_model("switch_transformers"), CONFIG)
    fused.save_pretrained(tmp_path)
    encoder = modeling.FusedSwitchTransformersEncoderModel.from_pretrained(tmp_path)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = fused.encoder(ids).last_hidden_state
        assert torch.equal(encoder(ids).last_hidden_state, expected)


def test_saving_again_changes_nothing(tmp_path):
    fused = fuse_model(tiny_model("gpt2"), CONFIG)
    fused.save_pretrained(tmp_path / "a")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_random_weights_from_a_fused_config():
    config = fuse_model(tiny_model("gpt2"), CONFIG).config
    model = transformers.AutoModelForCausalLM.from_config(config)
    sizes = [tensor for name, tensor in model.state_dict().items() if name.endswith("cluster_sizes")]
    assert [tensor.tolist() for tensor in sizes] == [[4] * 16] * 3
    assert torch.isfinite(first_output(model)).all()


def test_pickle_and_deepcopy(tmp_path):
    import copy
    import pickle

    fused = fuse_model(tiny_model("bert"), CONFIG)
    for twin in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        assert type(twin) is type(fused)
        assert torch.equal(first_output(twin), first_output(fused))


def test_tokenizer_by_auto_class(tmp_path):
    """A folder whose tokenizer_config names no class still finds the family's tokenizer by the fused config."""
    fuse_model(tiny_model("bert"), CONFIG).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is transformers.BertTokenizer
    assert tokenizer("hello")["input_ids"] == [2, 5, 3]
