"""Tuning on texts, from Python and from the command line."""

import inspect
import json
from dataclasses import asdict

import pytest
import torch
import transformers
from conftest import TINY_HEADS, first_output, tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionWarning, fuse_model
from hf_mlp_fusion.cli.tune import tune
from hf_mlp_fusion.errors import DataError, UnsupportedModelError
from hf_mlp_fusion.export import export_plain
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.training import TARGETS, tune_model
from hf_mlp_fusion.training.targets import learning_rate_for

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")


@pytest.fixture
def folder(tmp_path):
    """A folder with a stock model, what fusion made of it, and texts."""
    model, tokenizer = tiny_model("roberta"), tiny_tokenizer("roberta")
    model.save_pretrained(tmp_path / "stock")
    model = TINY_HEADS["roberta"].from_pretrained(tmp_path / "stock", dtype=torch.float16)
    fused = fuse_model(model, FusionConfig(width=16))
    fused.save_pretrained(tmp_path / "fused")
    for name in ("stock", "fused"):
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)))
    return tmp_path


@pytest.mark.parametrize("family", ["roberta", "gpt2", "switch_transformers"])
def test_logits_are_compared_in_every_language_model(family):
    model = tiny_model(family)
    fused = fuse_model(model, FusionConfig(width=16, targets="all"))
    options = {"target": "logits", "steps": 3, "max_length": 12}
    result = tune_model(fused, model, tiny_texts(60), tiny_tokenizer(family), **options)
    assert min(result.divergence) > 0
    original, before, after = result.losses
    assert original != before != after
    (done,) = fused.fusion_report.tuning
    assert (done.loss_original, done.loss_before, done.loss_after) == result.losses
    assert (done.steps, done.batch_size, done.learning_rate) == (3, 8, TARGETS["logits"].learning_rate)


@pytest.mark.parametrize(
    ("head", "power", "target", "rate"),
    [
        ("RobertaForMaskedLM", 0, "logits", 6e-4),
        ("RobertaForMaskedLM", 0.5, "logits", 2e-4),
        ("RobertaForSequenceClassification", 0, "logits", 2e-4),
        ("RobertaForMaskedLM", 0, "hidden_states", 3e-4),
    ],
)
def test_folded_language_models_learn_faster_on_logits(head, power, target, rate):
    fused = fuse_model(tiny_model("roberta", getattr(transformers, head)), FusionConfig(width=16, power=power))
    assert learning_rate_for(target, fused) == rate


@pytest.mark.parametrize("family", ["roberta", "gpt2", "switch_transformers"])
def test_texts_suit_every_family(family):
    model = tiny_model(family)
    fused = fuse_model(model, FusionConfig(width=16, targets="all"))
    use_cache = fused.config.use_cache
    options = {"epochs": 4, "learning_rate": 5e-4, "max_length": 12}
    result = tune_model(fused, model, tiny_texts(60), tiny_tokenizer(family), **options)
    assert result.after.mean < result.before.mean
    assert result.rows > 1
    assert fused.config.use_cache == use_cache
    (done,) = fused.fusion_report.tuning
    assert (done.error_before, done.error_after) == (result.before.mean, result.after.mean)


def test_too_few_texts_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(DataError, match="3 texts are too few"):
        tune_model(fuse_model(model, FusionConfig(width=16)), model, tiny_texts(3), tiny_tokenizer("gpt2"))


def test_tuning_that_harms_says_so_and_few_texts_hold_out_more():
    model = tiny_model("bert", transformers.BertForSequenceClassification)
    fused = fuse_model(model, FusionConfig(width=16))
    with pytest.warns(
        FusionWarning, match=r"tuning made the output error worse, from 0\.\d+ to .*: give more texts"
    ) as told:
        result = tune_model(fused, model, tiny_texts(64), tiny_tokenizer("bert"), learning_rate=0.5, epochs=3)
    assert result.rows >= 16
    assert len([item for item in told if issubclass(item.category, FusionWarning)]) == 1
    with pytest.warns(FusionWarning, match=r"was measured on \d+ rows, and says little"):
        tune_model(fused, model, tiny_texts(12), tiny_tokenizer("bert"), learning_rate=0.0)


def test_the_command(cli, folder):
    options = ("--lr", "5e-4", "--epochs", "4", "--batch-size", "2")
    code, out, err = cli("tune", folder / "fused", folder / "out", "--texts", folder / "texts.txt", *options)
    assert code == 0, err
    assert "mean" in out
    assert f"Saved in {folder / 'out'}" in out.replace("\n", "")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "config.json",
        "fusion_report.json",
        "model.safetensors",
        "modeling_mlp_fusion.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    before, after = (transformers.AutoModelForMaskedLM.from_pretrained(folder / name) for name in ("fused", "out"))
    assert after.dtype == before.dtype == torch.float16
    assert after.config.mlp_fusion == before.config.mlp_fusion
    assert not torch.equal(first_output(after), first_output(before))
    assert transformers.AutoTokenizer.from_pretrained(folder / "out")("w1 w2") == tiny_tokenizer("roberta")("w1 w2")
    (done,) = after.fusion_report.tuning
    assert done.teacher == str(folder / "stock")
    assert done.error_after < done.error_before
    assert "Tuned" in cli("inspect", folder / "out")[1]

    (folder / "stock").rename(folder / "moved")
    again = ("tune", folder / "out", folder / "again", "--texts", folder / "texts.txt", "--json")
    code, _, err = cli(*again)
    assert code == 1
    assert "name it with --teacher" in err
    code, out, _ = cli(*again, "--teacher", folder / "moved", "--target", "ffn_outputs", "--epochs", "0.5")
    assert code == 0
    first, second = json.loads(out)["tuning"]
    assert first == asdict(done)
    assert second["target"] == "ffn_outputs"
    assert sorted(path.name for path in folder.iterdir()) == ["again", "fused", "moved", "out", "texts.txt"]


def test_the_command_on_logits(cli, folder):
    options = ("--target", "logits", "--train", "body", "--steps", "5", "--texts", folder / "texts.txt")
    code, out, err = cli("tune", folder / "fused", folder / "out", *options, "--lr", "1e-3")
    assert code == 0, err
    assert "Divergence from the original: " in out
    assert "times the original's" in out
    assert "Tuned since on logits (body): 5 steps" in cli("inspect", folder / "out")[1]
    code, out, err = cli("tune", folder / "fused", folder / "again", *options, "--lr", "1e-3", "--json")
    assert code == 0, err
    (done,) = json.loads(out)["tuning"]
    (same,) = json.loads((folder / "out" / "fusion_report.json").read_text())["tuning"]
    assert done | {"seconds": 0} == same | {"seconds": 0}
    assert done["divergence_after"] > 0
    assert (done["batch_size"], done["learning_rate"], done["trained"]) == (8, 1e-3, "body")
    assert all(done[name] > 1 for name in ("loss_original", "loss_before", "loss_after"))
    code, _, err = cli("tune", folder / "fused", folder / "written", "--sampled", *options[:6])
    assert code == 0, err


def test_classifiers_are_tuned_on_logits_and_harm_is_told():
    model = tiny_model("bert", transformers.BertForSequenceClassification)
    fused = fuse_model(model, FusionConfig(width=16))
    options = {"target": "logits", "steps": 10, "max_length": 16}
    with pytest.warns(FusionWarning, match=r"tuning made the divergence from the original worse, from .*: give more"):
        result = tune_model(fused, model, tiny_texts(64), tiny_tokenizer("bert"), learning_rate=0.5, **options)
    assert result.losses is None
    assert result.divergence[0] < result.divergence[1]
    (done,) = fused.fusion_report.tuning
    assert (done.divergence_before, done.divergence_after) == result.divergence
    with pytest.raises(DataError, match="writes no text"):
        tune_model(fused, model, "sampled", tiny_tokenizer("bert"), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fused", "out"], "give --texts FILE or --dataset NAME"),
        (["fused", "fused", "--texts", "texts.txt"], "is or holds the model itself"),
        (["fused", "stock", "--texts", "texts.txt", "--teacher", "stock"], "is or holds the model itself"),
        (["fused", "stock", "--texts", "texts.txt"], "is not empty"),
        (["stock", "out", "--texts", "texts.txt"], "is not fused"),
        (["fused", "out", "--texts", "texts.txt", "--teacher", "fused"], "is fused already"),
        (["fused", "out", "--texts", "texts.txt", "--train", "magic"], "train must be one of"),
        (["fused", "out", "--texts", "texts.txt", "--sampled"], "give --texts FILE or --dataset NAME, or --sampled"),
        (["fused", "out", "--texts", "texts.txt", "--target", "magic"], "target must be one of"),
        (["fused", "out", "--texts", "none.txt"], "none.txt"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(cli, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    code, out, err = cli("tune", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == ["fused", "stock", "texts.txt"]


def test_the_command_has_the_defaults_of_the_function():
    options, parameters = (inspect.signature(function).parameters for function in (tune, tune_model))
    names = {"lr": "learning_rate"}
    for name in ("target", "train", "epochs", "steps", "lr", "batch_size", "max_length", "seed"):
        assert options[name].default == parameters[names.get(name, name)].default, name


@pytest.mark.parametrize("target", ["logits", "hidden_states"])
def test_in_stages_the_first_original_teaches(target, tmp_path):
    """Fused, exported, fused again: what was fused last is narrower than the teacher."""
    model = tiny_model("gpt2")
    export_plain(fuse_model(model, FusionConfig(width=48)), tmp_path)
    between = load_stock_model(str(tmp_path))
    fused = fuse_model(between, FusionConfig(width=32))
    options = {"target": target, "steps": 3, "max_length": 12}
    assert tune_model(fused, model, tiny_texts(60), tiny_tokenizer("gpt2"), **options).after.mean > 0
    wide = fuse_model(model, FusionConfig(width=32))
    with pytest.raises(UnsupportedModelError, match=r"shape \(16, 48, 16\), the original's had \(16, 64, 16\)"):
        tune_model(wide, between, tiny_texts(60), tiny_tokenizer("gpt2"), **options)
