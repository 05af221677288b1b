import json
import sys

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionConfigError
from hf_mlp_fusion.comparison import compare, load_subject, markdown_table, read_rows, write_report
from hf_mlp_fusion.comparison.results import RESULTS_NAME, add_row
from hf_mlp_fusion.comparison.row import Row
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure import latencies

MODULE = sys.modules[compare.__module__]  # the package gives the function the module's name
CONFIG = FusionConfig(width=16)
METHODS = ["fusion", "fusion_calibrated", "prune", "layer_drop"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Makes folders of tiny models with their tokenizers, once each."""
    root = tmp_path_factory.mktemp("models")

    def make(family):
        path = root / family
        if not path.exists():
            tiny_model(family).save_pretrained(path)
            tiny_tokenizer(family).save_pretrained(path)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Latency is timed for five runs, no longer."""
    monkeypatch.setattr(
        MODULE,
        "latencies",
        lambda models, batch, training: latencies(models, batch, training=training, seconds=0.0),
    )


def subject(folder, family="gpt2", **kwargs):
    return load_subject(folder(family), tiny_texts(80), samples=4, **kwargs)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("roberta", marks=pytest.mark.every),
        "gpt2",
        pytest.param("switch_transformers", marks=pytest.mark.every),
    ],
)
def test_every_method_gets_a_row(folder, family, tmp_path):
    rows = list(compare(subject(folder, family), CONFIG, METHODS, tmp_path))
    assert [row.method for row in rows] == ["original", *METHODS]
    assert read_rows(tmp_path) == rows
    original, fusion, calibrated, prune, dropped = rows
    assert fusion.parameters == prune.parameters < original.parameters
    assert set(fusion.output_errors) == set(fusion.ntk_errors) == set(fusion.clusters)
    assert fusion.output_error > 0
    assert fusion.ntk_error > 0
    assert all(sum(sizes) == 64 for sizes in fusion.clusters.values())
    assert prune.clusters == {}
    if family == "gpt2":  # whose calibration has more tokens than units
        assert calibrated.output_error < fusion.output_error
    assert fusion.loss > 0
    assert fusion.forward.median > 0
    assert 0.1 < fusion.training.speedup < 10
    assert original.forward.speedup is None
    assert fusion.forward.speedup == fusion.forward.original / fusion.forward.median
    assert fusion.training.flops > 2 * fusion.forward.flops
    assert fusion.forward.flops < original.forward.flops
    if family == "switch_transformers":
        assert "one stack" in dropped.refused
        assert dropped.parameters is None
        assert original.expert_load["encoder.block.1.layer.1.mlp"] == fusion.expert_load["encoder.block.1.layer.1.mlp"]
    else:
        assert original.expert_load == fusion.expert_load == {}
        assert dropped.output_errors == dropped.ntk_errors == {}
        assert dropped.hidden_error > 0
        assert dropped.ntk_size > 0


def test_fewer_experts_beside_fewer_units(tmp_path):
    model = tiny_family_model(FAMILIES["mixtral"])
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "model")
    mixture = load_subject(str(tmp_path / "model"), tiny_texts(80), samples=4)
    original, fusion, reap = compare(mixture, FusionConfig(width=32), ["fusion", "reap"], tmp_path / "rows")
    assert reap.parameters == fusion.parameters - 2 * 2 * 16  # two rows of the router of each layer
    assert {len(tokens) for tokens in reap.expert_load.values()} == {2}
    assert reap.hidden_error > 0
    assert reap.ntk_error > 0
    assert original.loss > 0


def test_it_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    done = []
    usual = MODULE.reduce_model

    def interrupted(model, config, method, **kwargs):
        if method == "svd":
            raise KeyboardInterrupt
        done.append(method)
        return usual(model, config, method, **kwargs)

    monkeypatch.setattr(MODULE, "reduce_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(compare(subject(folder), CONFIG, ["fusion", "prune", "svd"], tmp_path))
    first = read_rows(tmp_path)
    assert [row.method for row in first] == ["original", "fusion", "prune"]
    assert "prune" in {row.method for row in write_report(tmp_path)}

    monkeypatch.setattr(MODULE, "reduce_model", usual)
    rows = list(compare(subject(folder), CONFIG, ["fusion", "prune", "svd"], tmp_path))
    assert rows[:3] == first  # the very numbers, latencies too: not measured again
    assert rows[3].method == "svd"
    assert done == ["fusion", "prune"]


@pytest.mark.every
def test_another_recipe_model_or_text_is_another_comparison(folder, tmp_path):
    def comparison(config=CONFIG, family="gpt2", texts=80, **kwargs):
        loaded = load_subject(folder(family), tiny_texts(texts), samples=4, **kwargs)
        return next(compare(loaded, config, [], tmp_path)).comparison

    ids = [
        comparison(),
        comparison(FusionConfig(width=32)),
        comparison(family="roberta"),
        comparison(texts=81),
        comparison(seed=1),
    ]
    assert len(set(ids)) == 5
    assert comparison() == ids[0]
    assert len(read_rows(tmp_path)) == 5


def test_a_line_that_was_cut_short_is_passed_over(folder, tmp_path):
    rows = list(compare(subject(folder), CONFIG, ["prune"], tmp_path))
    path = tmp_path / RESULTS_NAME
    path.write_text(path.read_text()[:-40])
    assert read_rows(tmp_path) == rows[:1]
    add_row(tmp_path, rows[1])
    assert read_rows(tmp_path) == rows


def test_foreign_lines_are_refused(tmp_path):
    (tmp_path / RESULTS_NAME).write_text(json.dumps({"key": "a"}) + "\n")
    with pytest.raises(DataError, match="no row of a comparison"):
        read_rows(tmp_path)
    values = Row("k", "c", {}, "fusion").to_dict()
    assert Row.from_dict(values).to_dict() == values
    with pytest.raises(DataError, match="another version"):
        Row.from_dict(values | {"new": 1})
    with pytest.raises(DataError):
        write_report(tmp_path / "nothing")


def test_a_new_classifier_head_is_seeded_and_has_no_loss(folder, tmp_path):
    one, two, other = (subject(folder, "roberta", head="classifier", seed=seed) for seed in (0, 0, 1))
    assert type(one.model) is transformers.RobertaForSequenceClassification
    assert torch.equal(one.model.classifier.dense.weight, two.model.classifier.dense.weight)
    assert not torch.equal(one.model.classifier.dense.weight, other.model.classifier.dense.weight)
    assert one.loss_batches == []
    row = list(compare(one, CONFIG, ["fusion"], tmp_path))[1]
    assert row.loss is None
    assert row.ntk_error > 0
    assert "perplexity" not in markdown_table([row])


def test_bad_input_is_refused(folder, tmp_path):
    with pytest.raises(FusionConfigError, match="no method 'magic'"):
        list(compare(subject(folder), CONFIG, ["magic"], tmp_path))
    with pytest.raises(FusionConfigError, match="'own', 'classifier'"):
        subject(folder, head="regressor")
    with pytest.raises(FusionConfigError, match="no such folder"):
        load_subject("/nowhere", tiny_texts())
    tiny_model("gpt2").save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match="no tokenizer"):
        load_subject(str(tmp_path / "bare"), tiny_texts())
