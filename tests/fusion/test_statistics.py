"""Statistics in files: fusing on them is fusing on the rows, and what does not fit is refused in one line."""

import json

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, FusionError, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import Statistics, StatisticsSource, layer_fuser
from hf_mlp_fusion.fusion.calibrate import calibrate_model
from hf_mlp_fusion.modeling.find import find_ffns

CLASSIFIER = transformers.BertForSequenceClassification


def same(fused, other):
    """Whether two fused models are equal bit for bit, and their receipts but for rounding of the errors told."""
    state, expected = fused.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    for mine, theirs in zip(fused.fusion_report.ffns, other.fusion_report.ffns, strict=True):
        assert (mine.width, mine.method, mine.tokens) == (theirs.width, theirs.method, theirs.tokens)
        # Squared, as it is summed up: of an error that is none the root of what rounding leaves says nothing.
        assert mine.calibration_error**2 == pytest.approx(theirs.calibration_error**2, rel=2e-3, abs=1e-8)


@pytest.mark.parametrize("width", [32, "auto:0.5"])
@pytest.mark.parametrize("family", ["gpt2", "bert", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_fusing_on_statistics_is_fusing_on_the_rows(family, width, tmp_path):
    model = tiny_model(family)
    data = batches(model, count=40)
    config = FusionConfig(width=width, ntk="none", multiple_of=8, targets="all")
    statistics = calibrate_model(model, tmp_path, data)
    same(fuse_model(model, config, calibration=statistics), fuse_model(model, config, calibration=data))


@pytest.mark.parametrize("width", [32, "auto:0.5"])
@pytest.mark.parametrize("name", ["mixtral", "switch_transformers"])
def test_experts_are_taken_one_by_one(name, width, tmp_path, monkeypatch):
    """Of a stack the moments of one expert are in memory, and the result is the same."""
    model = tiny_family_model(FAMILIES[name])
    config = FusionConfig(width=width, ntk="none", multiple_of=8, targets="all")
    statistics = calibrate_model(model, tmp_path, batches(model, count=40))
    expected = fuse_model(model, config, calibration=statistics)
    taken = []
    known = StatisticsSource.moments

    def watched(self, model, ffns, units=None):
        taken.append(len(ffns))
        return known(self, model, ffns, units)

    monkeypatch.setattr(layer_fuser, "_MOMENT_BYTES", 1)
    monkeypatch.setattr(StatisticsSource, "moments", watched)
    same(fuse_model(model, config, calibration=statistics), expected)
    assert set(taken) == {1}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_saw_few_tokens_are_the_same_too(name, tmp_path):
    """They are fused as without data, on the tokens that they saw: those moments are taken anew, to rounding."""
    model = tiny_family_model(FAMILIES[name])
    ids = torch.randint(2, 90, (17, 2), generator=torch.Generator().manual_seed(3))
    data = [{"input_ids": ids}]
    config = FusionConfig(width=0.75, multiple_of=2, ntk="none")
    statistics = calibrate_model(model, tmp_path, data)
    with pytest.warns(UserWarning, match="too few"):
        fused = fuse_model(model, config, calibration=statistics)
    with pytest.warns(UserWarning, match="too few"):
        expected = fuse_model(model, config, calibration=data)
    assert any(item.method.startswith("clusters") for item in fused.fusion_report.ffns)
    torch.testing.assert_close(fused.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_model_without_logits_of_language_has_the_metric_of_the_output(tmp_path):
    model = tiny_model("bert", CLASSIFIER)
    data = batches(model, count=40)
    statistics = calibrate_model(model, tmp_path, data)
    assert statistics.header.metric == "output"
    config = FusionConfig(width=32, ntk="none")
    same(fuse_model(model, config, calibration=statistics), fuse_model(model, config, calibration=data))
    with pytest.raises(FusionError, match="no metric of the loss"):
        fuse_model(model, FusionConfig(width=32, metric="loss"), calibration=statistics)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and a folder of its statistics."""
    model = tiny_model("gpt2")
    folder = tmp_path_factory.mktemp("statistics")
    calibrate_model(model, folder, batches(model))
    return model, folder


def copied(folder, to):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("fields", "message"), [({"ntk": "match"}, "write ntk='none'"), ({"selection": "clusters"}, "write 'obs'")]
)
def test_recipes_that_need_the_rows_are_refused(fields, message, made):
    model, folder = made
    with pytest.raises(FusionError, match=message):
        fuse_model(model, FusionConfig(width=32, **fields), calibration=Statistics(folder))


def test_statistics_of_another_model_are_refused(made):
    _, folder = made
    for other, message in (
        (tiny_model("bert"), "is a bert"),
        (tiny_model("gpt2", n_layer=4), "no statistics of h[.]3"),
        (tiny_model("gpt2").half(), "other weights of h[.]0"),
    ):
        with pytest.raises(FusionError, match=message) as error:
            fuse_model(other, FusionConfig(width=16), calibration=Statistics(folder))
        assert "\n" not in str(error.value)


def test_broken_folders_are_refused(made, tmp_path):
    model, folder = made
    name = f"{next(find_ffns(model)).name}.safetensors"
    with pytest.raises(FusionError, match="holds no statistics"):
        Statistics(tmp_path)
    copy = copied(folder, tmp_path)
    fuse = lambda: fuse_model(model, FusionConfig(width=32), calibration=Statistics(copy))  # noqa: E731
    (copy / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(FusionError, match="cannot be read"):
        fuse()
    with safe_open(folder / name, "pt") as file:
        notes = file.metadata()
    tensors = load_file(folder / name)
    for changed, noted, message in (
        ({}, notes | {"weights": "others"}, "other weights"),
        ({"cross": tensors["cross"][:3].contiguous()}, notes, "cross should be"),
        ({"gram": tensors["gram"].float()}, notes, "gram should be"),
    ):
        save_file(tensors | changed, copy / name, metadata=noted)
        with pytest.raises(FusionError, match=message):
            fuse()
    (copy / name).unlink()
    with pytest.raises(FusionError, match="no statistics of h"):
        fuse()
    header = json.loads((folder / "statistics.json").read_text())
    for change, message in (
        ({"whole": False}, "not finished"),
        ({"format": 9}, "format 9"),
        ({"more": 1}, "no header"),
    ):
        (copy / "statistics.json").write_text(json.dumps(header | change))
        with pytest.raises(FusionError, match=message):
            fuse()


def test_moments_go_where_the_work_is_though_the_model_is_nowhere(tmp_path):
    """A streamed model is on the meta device, and its FFNs are reduced on a GPU."""
    model = tiny_model("gpt2")
    statistics = calibrate_model(model, tmp_path, batches(model, count=8))
    ffns = list(find_ffns(model))
    for place in ("cpu", "meta"):
        source = StatisticsSource(statistics, torch.device(place))
        assert {moments.gram.device.type for moments in source.moments(model, ffns).values()} == {place}
        assert {factor.device.type for factor in source.metrics(model, ffns, 0).values()} == {place}
