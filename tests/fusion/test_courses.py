"""How units went is kept with statistics: other widths, and what was stopped, have it from there."""

import json

import pytest
import torch
from conftest import tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_statistics import copied, same
from tiny_batches import batches

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, fuse_model
from hf_mlp_fusion.fusion import Statistics, layer_fuser
from hf_mlp_fusion.fusion.calibrate import calibrate_model
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.tensors import eliminate

FIRST, OTHERS = FusionConfig(width="auto:0.5", multiple_of=8, ntk="none"), [{"width": 16}, {"width": "auto:0.75"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and a folder of its statistics that nothing was fused on."""
    model = tiny_model("gpt2")
    folder = tmp_path_factory.mktemp("statistics")
    calibrate_model(model, folder, batches(model, count=40))
    return model, folder


@pytest.fixture
def eliminated(monkeypatch):
    """How many FFNs were eliminated from, call by call."""
    counts = []

    def counted(moments, *arguments, **options):
        counts.append(len(moments))
        return eliminate(moments, *arguments, **options)

    monkeypatch.setattr(layer_fuser, "eliminate", counted)
    return counts


def fused(model, folder, config):
    return fuse_model(model, config, calibration=Statistics(folder))


def changed(path, **notes):
    """Writes a file anew with other notes."""
    with safe_open(path, "pt") as file:
        known = file.metadata()
    save_file(load_file(path), path, metadata=known | notes)


def with_fields(config, fields):
    return FusionConfig.from_dict(config.to_dict() | fields)


@pytest.mark.parametrize("fields", OTHERS)
def test_another_width_is_fused_without_eliminating_again(fields, made, tmp_path, eliminated):
    model, folder = made
    config = with_fields(FIRST, fields)
    expected = fused(model, copied(folder, tmp_path), config)
    for path in tmp_path.glob("*.course.safetensors"):
        path.unlink()
    fused(model, tmp_path, FIRST)
    assert len([*tmp_path.glob("*.course.safetensors")]) == len([*find_ffns(model)])
    eliminated.clear()
    same(fused(model, tmp_path, config), expected)
    assert not eliminated


@pytest.mark.parametrize("fields", [{"metric": "output"}, {"multiple_of": 4}])
def test_what_is_not_known_is_eliminated(fields, made, tmp_path, eliminated):
    """By another metric, and where fewer units may be left."""
    model, folder = made
    fused(model, copied(folder, tmp_path), FIRST)
    config = with_fields(FIRST, fields)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    eliminated.clear()
    same(fused(model, tmp_path, config), fused(model, copied(folder, fresh), config))
    assert sum(eliminated) == 2 * len([*find_ffns(model)])


def test_fewer_units_than_a_search_leaves(made, tmp_path):
    """A width that is written down may be below `multiple_of`."""
    model, folder = made
    config = FusionConfig(width=16, multiple_of=64, ntk="none")
    copied(folder, tmp_path)
    assert {ffn.width for ffn in fused(model, tmp_path, config).fusion_report.ffns} == {16}
    assert {ffn.width for ffn in fused(model, tmp_path, config).fusion_report.ffns} == {16}


def test_a_search_that_was_stopped_goes_on(made, tmp_path, eliminated):
    model, folder = made
    expected = fused(model, copied(folder, tmp_path), FIRST)
    for path in sorted(tmp_path.glob("*.course.safetensors"))[1:]:
        path.unlink()
    eliminated.clear()
    same(fused(model, tmp_path, FIRST), expected)
    assert sum(eliminated) == len([*find_ffns(model)]) - 1


@pytest.mark.parametrize("of_it", ["search", "one width"])
def test_where_nothing_can_be_written_nothing_is_kept(of_it, made, tmp_path, monkeypatch):
    model, folder = made
    config = FIRST if of_it == "search" else with_fields(FIRST, {"width": 32})
    expected = fused(model, copied(folder, tmp_path), config)
    other = tmp_path / "other"
    other.mkdir()

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(Statistics, "write_course", refuse)
    monkeypatch.setattr(layer_fuser, "_MOMENT_BYTES", 1)
    same(fused(model, copied(folder, other), config), expected)
    assert not [*other.glob("*.course.safetensors")]


def test_a_course_of_other_statistics_is_not_taken(made, tmp_path, eliminated):
    model, folder = made
    fused(model, copied(folder, tmp_path), FIRST)
    header = json.loads((tmp_path / "statistics.json").read_text())
    (tmp_path / "statistics.json").write_text(json.dumps(header | {"sha256": "of other rows"}))
    first = next(find_ffns(model)).name
    eliminated.clear()
    fused(model, tmp_path, FIRST)
    assert sum(eliminated) == len([*find_ffns(model)])
    changed(tmp_path / f"{first}.course.safetensors", weights="others")
    eliminated.clear()
    fused(model, tmp_path, FIRST)
    assert eliminated == [1]


def test_broken_courses_are_refused(made, tmp_path):
    model, folder = made
    fused(model, copied(folder, tmp_path), FIRST)
    path = tmp_path / f"{next(find_ffns(model)).name}.course.safetensors"
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    tensors = load_file(path)
    twice = tensors["order"].clone()
    twice[0] = twice[1]
    for broken, message in (
        ({"order": twice}, "is no course of 64 units: delete it"),
        ({"order": tensors["order"] + 64}, "is no course of 64 units: delete it"),
        ({"rise": tensors["rise"] * torch.inf}, "is no course of 64 units: delete it"),
        ({"rise": tensors["rise"][1:]}, "rise should be"),
        ({"count": torch.ones(2)}, "count should be"),
    ):
        save_file(tensors | {name: item.contiguous() for name, item in broken.items()}, path, metadata=notes)
        with pytest.raises(BrokenCheckpointError, match=message):
            fused(model, tmp_path, FIRST)
    path.write_bytes(b"no tensors")
    with pytest.raises(BrokenCheckpointError, match="cannot be read"):
        fused(model, tmp_path, FIRST)
