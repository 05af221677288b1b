import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mlp_fusion import FusionConfig, FusionConfigError
from hf_mlp_fusion.recipe.layers import select_layers

widths = st.one_of(st.integers(1, 10_000), st.floats(0.001, 1.0))
configs = st.builds(
    FusionConfig,
    width=st.one_of(widths, st.dictionaries(st.text("abc.*", min_size=1), widths, min_size=1, max_size=3)),
    layers=st.one_of(
        st.sampled_from(["all", "last:3", "first:2", "1:4", ":-1", "h.1?.mlp"]),
        st.lists(st.integers(-4, 11), min_size=1, max_size=4),
    ),
    targets=st.sampled_from(["auto", "dense", "experts", "all"]),
    clustering=st.sampled_from(["ward", "kmeans"]),
    seed=st.integers(0, 2**32 - 1),
    multiple_of=st.integers(1, 512),
)


@given(configs)
def test_json_round_trip(config):
    assert FusionConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"width": 0}, "write a number of units such as 384"),
        ({"width": 0.0}, "write a share above 0"),
        ({"width": 1.5}, "write a share above 0"),
        ({"width": float("nan")}, "write a share above 0"),
        ({"width": "0.25"}, "write 384, 0.25, or 'auto:0.25'"),
        ({"width": True}, "must be a number of units"),
        ({"width": {}}, "write {'encoder.layer"),
        ({"width": {"a": -1}}, r"width\['a'\]=-1"),
        ({"width": {3: 4}}, "patterns are strings"),
        ({"layers": "last:0"}, "selects nothing"),
        ({"layers": "latest:3"}, 'write "all"'),
        ({"layers": ""}, 'write "all"'),
        ({"layers": []}, 'write "all"'),
        ({"layers": [1, "a"]}, 'write "all"'),
        ({"layers": 4}, 'write "all"'),
        ({"targets": "moe"}, "'auto', 'dense', 'experts', 'all'"),
        ({"clustering": "dbscan"}, "'ward', 'kmeans'"),
        ({"seed": -1}, "from 0 to"),
        ({"seed": 0.5}, "from 0 to"),
        ({"multiple_of": 0}, "64 suits GPUs"),
        ({"version": 0}, "positive integer"),
    ],
)
def test_bad_values_name_the_mend(fields, mend):
    with pytest.raises(FusionConfigError, match=mend):
        FusionConfig(**fields)


def test_newer_versions_are_refused_even_with_unknown_fields():
    with pytest.raises(FusionConfigError, match="pip install -U hf_mlp_fusion"):
        FusionConfig.from_dict({"version": 99, "magic": 1})


def test_unknown_fields_are_refused():
    with pytest.raises(FusionConfigError, match=r"unknown field 'widht'.*the fields are width, layers"):
        FusionConfig.from_dict({"widht": 3})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_recipe_or_a_clear_error(value):
    if value == {}:
        assert FusionConfig.from_json(json.dumps(value)) == FusionConfig()
    else:
        with pytest.raises(FusionConfigError, match=r"recipe|JSON"):
            FusionConfig.from_json(json.dumps(value))


STACKS = {"encoder": 4, "decoder": 3}
NAMES = [f"{stack}.block.{i}" for stack, count in STACKS.items() for i in range(count)]


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("all", {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2]}),
        ("last:2", {"encoder": [2, 3], "decoder": [1, 2]}),
        ("first:1", {"encoder": [0], "decoder": [0]}),
        ("1:3", {"encoder": [1, 2], "decoder": [1, 2]}),
        ("-1:", {"encoder": [3], "decoder": [2]}),
        ([0, -1], {"encoder": [0, 3], "decoder": [0, 2]}),
    ],
)
def test_layers_count_in_each_stack(layers, chosen):
    expected = {f"{stack}.{i}" for stack, numbers in chosen.items() for i in numbers}
    assert select_layers(layers, STACKS, NAMES) == expected


@pytest.mark.parametrize("layers", ["encoder.block.[01]", ["encoder.block.0", "encoder.block.1"]])
def test_layers_by_name(layers):
    assert select_layers(layers, STACKS, NAMES) == {"encoder.block.0", "encoder.block.1"}


@pytest.mark.parametrize(
    ("layers", "mend"),
    [
        ("last:4", "the decoder has 3 layers"),
        ([3], "the decoder has layers 0 to 2"),
        ("7:9", "selects nothing"),
        ("h.*", "names here are 'encoder.block.0' to 'decoder.block.2'"),
    ],
)
def test_layers_that_the_model_lacks(layers, mend):
    with pytest.raises(FusionConfigError, match=mend):
        select_layers(layers, STACKS, NAMES)
