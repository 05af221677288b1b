"""Whatever configs, receipts, headers and indices hold, reading them ends in a value or in a `FusionError`."""

import contextlib
import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_mlp_fusion import FusionConfig, FusionError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.files.json_files import read_object
from hf_mlp_fusion.hub.card import FusionCard
from hf_mlp_fusion.hub.headers import StoredTensor, check_stored_ffns, stored_tensors
from hf_mlp_fusion.hub.saved import SavedModel
from hf_mlp_fusion.recipe.report import FFNReport, FusionReport, SkippedFFN
from hf_mlp_fusion.recipe.section import FFNWidth, FusionSection

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "all", "last:" + "9" * 5000, "auto:0.25", "auto:" + "9" * 400, "a:b:c", "[" * 50, "../..", "\0"]
    )
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)

SOURCE = {"name_or_path": "x", "model_type": "gpt2", "architecture": "GPT2LMHeadModel", "dtype": "float32"}
SECTION = FusionSection(
    FusionConfig(width={"h.*": 0.25}, layers=[0, 1]),
    SOURCE,
    {"h.0.mlp": FFNWidth(16, 64), "h.1.mlp": FFNWidth(16, 64, "fused", (1.5, 2.0))},
).to_dict()
REPORT = FusionReport(
    FusionConfig().to_dict(),
    SOURCE,
    [FFNReport(f"h.{layer}.mlp", 64, 16, 0.5, 8, 3, 2128, 544, 0.1) for layer in range(2)],
    [SkippedFFN("h.2.mlp", 64, "left")],
    *(100, 50, 400, 200, 80, 0.5, 1.0),
).to_dict()


def places(values, path=()):
    """All places in nested JSON."""
    yield path
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def spoiled(values):
    """Copies of a good object with another value, or none, in one or two of its places."""

    def spoil(drawn):
        copied = copy.deepcopy(values)
        for path, value, drop in drawn:
            target = copied
            try:
                for key in path[:-1]:
                    target = target[key]
                if not path:
                    return value
                if drop and isinstance(target, dict):
                    target.pop(path[-1], None)
                else:
                    target[path[-1]] = value
            except (KeyError, IndexError, TypeError):
                pass  # an earlier change took the place away
        return copied

    change = st.tuples(st.sampled_from(list(places(values))), JSON, st.booleans())
    return st.lists(change, min_size=1, max_size=2).map(spoil)


@given(JSON | spoiled(SECTION))
@example(SECTION)
@example(SECTION | {"ffns": {"h.0.mlp": {"width": 1, "original_width": 1, "scales": [10**400, 1]}}})
def test_section(values):
    try:
        section = FusionSection.from_dict(values)
    except FusionError:
        return
    assert FusionSection.from_dict(json.loads(json.dumps(section.to_dict()))) == section


@given(JSON | spoiled(SECTION["recipe"]))
def test_recipe(values):
    try:
        recipe = FusionConfig.from_dict(values)
    except FusionError:
        return
    assert FusionConfig.from_json(recipe.to_json()) == recipe


@given(JSON | spoiled(REPORT))
@example(REPORT)
def test_report_and_its_card(values):
    try:
        report = FusionReport.from_dict(values)
    except FusionError:
        return
    # Compared as text, where a NaN in the recipe equals itself.
    assert FusionReport.from_dict(json.loads(report.to_json())).to_json() == report.to_json()
    section = FusionSection.from_dict(SECTION)
    card = FusionCard("x", SavedModel({"model_type": "fused_gpt2", "architectures": None}, section, report))
    assert card.merge_into(None).count("<!--") == 6


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b'{"a": NaN}')
def test_json_files(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    path.write_bytes(content)
    with contextlib.suppress(FusionError):
        assert isinstance(read_object(path), dict)


def with_length(header):
    return len(header).to_bytes(8, "little") + header


@given(
    st.binary(max_size=100)
    | JSON.map(lambda values: with_length(json.dumps(values).encode()))
    | st.dictionaries(st.text(max_size=5), JSON).map(lambda values: with_length(json.dumps(values).encode()))
)
@example((2**63).to_bytes(8, "little"))
@example(with_length(b'{"a":{"dtype":"I32","shape":[9999999999999],"data_offsets":[0,39999999999996]}}'))
@example(with_length(b"[" * 10_000))
def test_weight_headers(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(FusionError):
        check_stored_ffns(stored_tensors(folder, {}), FusionSection.from_dict(SECTION), FAMILIES["gpt2"])


@given(JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=5), st.text(max_size=9))}))
@example({"weight_map": {"a": "../model.safetensors"}})
@example({"weight_map": {"a": "evil.bin"}})
def test_indices(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model.safetensors.index.json").write_text(json.dumps(values))
    with pytest.raises((FusionError, OSError)):  # OSError: a shard with a good name is not there
        stored_tensors(folder, {})


@given(
    spoiled(SECTION["ffns"]),
    st.dictionaries(
        st.sampled_from(["h.0.mlp.c_fc.weight", "x", "h.0.mlp.act.cluster_sizes"]),
        st.lists(st.integers(0, 2**40), max_size=3),
    ),
)
def test_headers_against_sections(ffns, shapes):
    stored = {name: StoredTensor(name, "I32", tuple(shape), "x") for name, shape in shapes.items()}
    with contextlib.suppress(FusionError):
        section = FusionSection.from_dict(SECTION | {"ffns": ffns})
        assert not check_stored_ffns(stored, section, FAMILIES["gpt2"])  # which has no fault only without any FFN
