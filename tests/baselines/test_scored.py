"""The rivals that score units on data: scores compared with values computed naively, and what they keep."""

import pytest
import torch
import transformers
from any_family import inputs_of_any, tiny_family_model
from conftest import first_output, tiny_model
from test_reducers import random_weights, run

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError
from hf_mlp_fusion.baselines import METHODS, reduce_model
from hf_mlp_fusion.baselines.activations import UnitSums, unit_sums
from hf_mlp_fusion.baselines.compact import common_tokens, compact_scores
from hf_mlp_fusion.baselines.flap import fluctuations, standardized, without_units
from hf_mlp_fusion.baselines.nirvana import nirvana_scores
from hf_mlp_fusion.baselines.scored import best_units, shared_widths
from hf_mlp_fusion.baselines.sdmprune import sdmprune_scores
from hf_mlp_fusion.baselines.wanda import wanda_scores
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure import model_size
from hf_mlp_fusion.modeling.find import by_entry, find_ffns
from hf_mlp_fusion.tensors import MomentSums

SCORED = ["flap", "wanda", "compact", "sdmprune", "nirvana"]
SHARING = ["flap", "nirvana"]
HALF = FusionConfig(width=32, multiple_of=1, targets="all")


def rows(count=4, length=20, seed=0):
    ids = torch.randint(2, 90, (count, 8, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": batch, "labels": batch} for batch in ids]


def todo_of(model, width=32):
    return [(ffn, width) for ffn in find_ffns(model)]


@pytest.fixture
def seen():
    """An FFN of 32 units, and what they compute for 200 tokens."""
    weights = random_weights()
    inputs = torch.randn(200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return weights, inputs, torch.relu(inputs @ weights.up.T + weights.up_bias)


def sums_of(hidden):
    sums = UnitSums()
    for part in hidden.split(70):
        sums.add(part, torch.ones(len(part)))
    return sums


def test_flap_is_variance_times_squared_output_weights(seen):
    weights, _, hidden = seen
    expected = hidden.var(0, correction=0) * weights.down.square().sum(0)
    torch.testing.assert_close(fluctuations(weights, sums_of(hidden)), expected)
    scores = standardized(expected)
    torch.testing.assert_close(scores.mean().item(), 0.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.std().item(), 1.0)
    assert not standardized(torch.ones(5)).any()


def test_flap_keeps_the_mean_output(seen):
    weights, inputs, hidden = seen
    small = without_units(weights, torch.arange(0, 32, 3), hidden.mean(0))
    torch.testing.assert_close(run(small, inputs).mean(0), run(weights, inputs).mean(0))
    assert torch.equal(small.down, weights.down[:, ::3])


def test_wanda_is_mean_weight_times_norm(seen):
    weights, _, hidden = seen
    expected = torch.stack(
        [(weights.down[:, i].abs() * hidden[:, i].square().mean().sqrt()).mean() for i in range(32)]
    )
    for centred in (False, True):
        sums = MomentSums(centred=centred)
        sums.add(hidden, hidden @ weights.down.T)
        torch.testing.assert_close(wanda_scores(weights, sums.moments()), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_sums_leave_padding_out(family):
    model = tiny_model(family)
    (batch, *_) = rows()
    padded = batch | {"attention_mask": (torch.arange(20) < 13).long().expand(8, -1)}
    cut = {"input_ids": batch["input_ids"][:, :13]}
    ffns = list(find_ffns(model))
    one, other = (unit_sums(model, ffns, [item]) for item in (padded, cut))
    for ffn in ffns:
        assert one[ffn.name].count == other[ffn.name].count == 8 * 13
        for name in ("mean", "mean_square"):
            torch.testing.assert_close(
                getattr(one[ffn.name], name), getattr(other[ffn.name], name), rtol=1e-4, atol=1e-6
            )


def test_common_tokens_make_up_the_share():
    batch = {"input_ids": torch.tensor([[5, 5, 5, 5], [7, 7, 7, 2], [9, 3, 7, 5]])}  # 5, 4, 1, 1, 1
    assert common_tokens([batch], 0.5).tolist() == [5, 7]
    assert common_tokens([batch], 0.4).tolist() == [5]
    assert common_tokens([batch], 1.0).tolist() == [5, 7, 2, 3, 9]


def test_compact_is_the_mean_square_over_common_tokens():
    model, batches = tiny_model("gpt2"), rows()
    scores = compact_scores(model, todo_of(model), HALF, batches)
    common = common_tokens(batches)
    assert 10 < len(common) < 90
    chosen = []
    ffn = next(find_ffns(model))
    (hook,) = ffn.watch(outputs=lambda hidden, _: chosen.append(hidden[torch.isin(batch["input_ids"], common)]))
    for batch in batches:
        with torch.no_grad():
            model(input_ids=batch["input_ids"])
    hook.remove()
    torch.testing.assert_close(scores[ffn.name], torch.cat(chosen).double().square().mean(0))


def test_nirvana_is_the_sum_of_gradients_times_weights():
    model, batches = tiny_model("gpt2").double(), rows(2)
    scores = nirvana_scores(model, todo_of(model), HALF, batches)
    joined = {"input_ids": torch.cat([batch["input_ids"] for batch in batches])}
    mlp = model.transformer.h[1].mlp
    parts = [mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight]
    up, bias, down = torch.autograd.grad(model(**joined).logits.amax(1).mean(), parts)
    expected = (up * parts[0]).abs().sum(0) + (bias * parts[1]).abs() + (down * parts[2]).abs().sum(1)
    torch.testing.assert_close(scores["h.1.mlp"], expected, rtol=1e-9, atol=1e-15)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sdmprune_is_the_gradient_of_the_distance_to_the_model_itself():
    model, batches = tiny_model("gpt2").double(), rows(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = sdmprune_scores(model, todo_of(model), HALF, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    gone = {name: (values == 0).nonzero().flatten().tolist() for name, values in scores.items()}
    assert [len(units) for units in gone.values()] == [1, 1, 1]  # 2.5 % of 64
    student = tiny_model("gpt2").double()
    for ffn in find_ffns(student):
        with torch.no_grad():
            ffn.read().down[:, gone[ffn.name]] = 0
    mlp = student.transformer.h[1].mlp
    parts = [mlp.c_fc.weight, mlp.c_proj.weight]
    inputs = {"input_ids": batches[0]["input_ids"]}
    wanted, found = (item(**inputs).logits.log_softmax(-1) for item in (model, student))
    up, down = torch.autograd.grad((wanted.exp() * (wanted - found)).sum(-1).mean(), parts)
    expected = (up * parts[0] + (down * parts[1]).T).abs().mean(0)
    expected[gone["h.1.mlp"]] = 0
    torch.testing.assert_close(scores["h.1.mlp"], expected, rtol=1e-6, atol=1e-15)


def test_sdmprune_that_keeps_all_units_is_at_no_distance():
    model = tiny_model("gpt2").double()
    scores = sdmprune_scores(model, todo_of(model, 64), HALF, rows(1))
    assert all(values.max() < 1e-15 for values in scores.values())


def test_units_of_equal_scores_are_told_by_their_weights():
    weights = random_weights()
    heavy = weights.features().norm(dim=1).argsort()[-5:].sort().values
    assert best_units(weights, torch.ones(32), 5).tolist() == heavy.tolist() == best_units(weights, None, 5).tolist()
    assert best_units(weights, torch.arange(32), 3).tolist() == [29, 30, 31]


def test_shared_widths_keep_the_best_of_all():
    model = tiny_model("gpt2")
    generator = torch.Generator().manual_seed(0)
    scores = {ffn.name: torch.randn(64, generator=generator) * (1 + ffn.layer) for ffn in find_ffns(model)}
    widths = shared_widths(scores, todo_of(model), HALF)
    bar = torch.cat(list(scores.values())).sort().values[-96]
    assert widths == {name: int((values >= bar).sum()) for name, values in scores.items()}
    assert len(set(widths.values())) == 3
    coarse = shared_widths(scores, todo_of(model), FusionConfig(width=32, multiple_of=8))
    assert sum(coarse.values()) == 96
    assert all(width % 8 == 0 for width in coarse.values())


@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_units_that_do_nothing_go_first(method, family):
    model = tiny_family_model(FAMILIES[family])
    with torch.no_grad():
        for ffn in find_ffns(model):
            weights = ffn.read()
            for part in (weights.up, weights.up_bias, weights.gate, weights.gate_bias, weights.down.T):
                if part is not None:
                    part[::2] = 0
    small = reduce_model(model, HALF, method, calibration=rows())
    torch.testing.assert_close(first_output(small), first_output(model), rtol=1e-4, atol=1e-5)
    for ffn in find_ffns(small):
        assert ffn.width == 32
        assert ffn.read().up.any(dim=1).all()


@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize(
    "family", ["bert", "gpt2", "t5", "llama", "phi3", "switch_transformers", "mixtral", "gpt_oss"]
)
def test_they_run_on_all_kinds(method, family, tmp_path):
    model = tiny_family_model(FAMILIES[family])
    batches = [inputs_of_any(model, batch=8, seed=seed) for seed in range(3)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if method == "compact" and family in ("mixtral", "gpt_oss"):
        with pytest.raises(UnsupportedModelError, match="experts are not told"):
            reduce_model(model, HALF, method, calibration=batches)
        return
    one, two = (reduce_model(model, HALF, method, calibration=batches) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in two.state_dict().items())
    assert one.config.mlp_fusion["method"] == method
    assert model_size(one).parameters == model_size(reduce_model(model, HALF, "prune")).parameters
    widths = [group[0].width for group in by_entry(find_ffns(one))]
    if method not in SHARING:
        assert set(widths) == {32}
    one.save_pretrained(tmp_path)
    again = type(one).from_pretrained(tmp_path)
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("method", SHARING)
def test_layers_that_matter_less_become_narrower(method):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[:40] *= 1e-3
    small = reduce_model(model, HALF, method, calibration=rows())
    widths = [ffn.width for ffn in find_ffns(small)]
    assert widths[1] < 32
    assert sum(widths) == 96


def test_they_need_data_and_sdmprune_predictions():
    model = tiny_model("bert", transformers.BertModel)
    for method in SCORED:
        assert method in METHODS
        with pytest.raises(FusionConfigError, match="needs calibration data"):
            reduce_model(model, HALF, method)
    with pytest.raises(UnsupportedModelError, match="predictions of tokens or classes"):
        reduce_model(model, HALF, "sdmprune", calibration=rows())
    classifier = tiny_model("bert", transformers.BertForSequenceClassification)
    for method in SCORED:
        assert reduce_model(classifier, HALF, method, calibration=rows()).config.mlp_fusion["method"] == method


def test_compact_needs_tokens():
    model = tiny_family_model(FAMILIES["vit"])
    batches = [inputs_of_any(model, batch=8)]
    with pytest.raises(FusionConfigError, match="the model reads none"):
        reduce_model(model, HALF, "compact", calibration=batches)
