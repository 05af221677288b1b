import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mlp_fusion import BrokenCheckpointError, FusionReport
from hf_mlp_fusion.recipe.report import FFNReport, SkippedFFN, TuningReport

names = st.text(max_size=20)
counts = st.integers(0, 10**12)
shares = st.floats(0, 1)
ffns = st.builds(FFNReport, names, counts, counts, shares, counts, counts, counts, counts, shares)
skipped = st.builds(SkippedFFN, names, counts, names)
reports = st.builds(
    FusionReport,
    recipe=st.dictionaries(names, counts),
    source=st.dictionaries(names, names),
    ffns=st.lists(ffns, max_size=2),
    skipped=st.lists(skipped, max_size=2),
    parameters_before=counts,
    parameters_after=counts,
    bytes_before=counts,
    bytes_after=counts,
    ffn_parameters=counts,
    fused_share=shares,
    seconds=shares,
    warnings=st.lists(names, max_size=2),
    versions=st.dictionaries(names, names),
    tuning=st.lists(st.builds(TuningReport, names, names, counts, counts, shares, counts, shares, shares), max_size=2),
)


@given(reports)
def test_json_round_trip(report):
    assert FusionReport.from_dict(json.loads(report.to_json())) == report


@given(reports, st.data())
def test_one_field_broken(report, data):
    values = report.to_dict()
    name = data.draw(st.sampled_from(sorted(set(values) - {"warnings", "versions", "tuning"})))
    if data.draw(st.booleans()):
        del values[name]
        fault = f"{name!r} is missing"
    else:
        values[name] = None
        fault = f"{name} must be"
    with pytest.raises(BrokenCheckpointError, match=fault):
        FusionReport.from_dict(values)


def test_receipts_from_before_tuning_load():
    report = FusionReport({}, {}, [], [], 1, 1, 1, 1, 1, 1.0, 0.0)
    values = report.to_dict()
    del values["tuning"]
    assert FusionReport.from_dict(values) == report
    with pytest.raises(BrokenCheckpointError, match="TuningReport: 'target' is missing"):
        FusionReport.from_dict(values | {"tuning": [{}]})


def test_unknown_fields_and_items():
    with pytest.raises(BrokenCheckpointError, match="unknown field 'x'"):
        FusionReport.from_dict({"x": 1})
    with pytest.raises(BrokenCheckpointError, match="expected an object, found list"):
        FusionReport.from_dict([])


def test_save_leaves_no_other_file(tmp_path):
    report = FusionReport({}, {}, [], [], 1, 1, 1, 1, 1, 1.0, 0.0)
    report.save(tmp_path)
    report.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fusion_report.json"]
    assert FusionReport.from_file(tmp_path / "fusion_report.json") == report
    (tmp_path / "large.json").write_bytes(b" " * (64 * 2**20 + 1))
    with pytest.raises(BrokenCheckpointError, match="too large"):
        FusionReport.from_file(tmp_path / "large.json")
