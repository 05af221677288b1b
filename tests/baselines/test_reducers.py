"""The tensor functions of the rivals."""

import math

import numpy as np
import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, FusionWarning, UnsupportedModelError
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.baselines.cluster import fold_clusters
from hf_mlp_fusion.baselines.layer_drop import kept_layers
from hf_mlp_fusion.baselines.mmd import discrepancy, fit_units
from hf_mlp_fusion.baselines.ntk_sap import ntk_saliencies
from hf_mlp_fusion.baselines.prune import largest, unit_magnitudes
from hf_mlp_fusion.baselines.sketch import sketch_units
from hf_mlp_fusion.baselines.svd import equal_rank, low_rank_factors
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.tensors.reduction import FFNWeights


def random_weights(units=32, size=8, gated=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    gate = (draw(units, size), None) if gated else (None, None)
    return FFNWeights(draw(units, size), draw(size, units), draw(units), *gate, draw(size))


def run(weights, inputs, activation=torch.relu):
    up = inputs @ weights.up.T + (0 if weights.up_bias is None else weights.up_bias)
    hidden = activation(up) if weights.gate is None else activation(inputs @ weights.gate.T) * up
    return hidden @ weights.down.T + weights.down_bias


def duplicated(weights, times):
    parts = {
        name: None if part is None else part.repeat(times, *[1] * (part.dim() - 1))
        for name, part in (("up", weights.up), ("up_bias", weights.up_bias), ("gate", weights.gate))
    }
    return FFNWeights(down=weights.down.repeat(1, times), down_bias=weights.down_bias, **parts)


@pytest.mark.parametrize("gated", [False, True])
def test_features_and_units_are_inverse(gated):
    weights = random_weights(gated=gated)
    again = weights.with_units(weights.features())
    assert all(torch.equal(getattr(again, n), getattr(weights, n)) for n in ("up", "down", "up_bias", "down_bias"))
    assert (again.gate is None) == (not gated)
    assert not gated or torch.equal(again.gate, weights.gate)


def test_full_rank_is_exact_and_lower_rank_the_best():
    matrix = random_weights().up
    first, second = low_rank_factors(matrix, 8)
    torch.testing.assert_close(second @ first, matrix, rtol=1e-12, atol=1e-12)
    first, second = low_rank_factors(matrix, 3)
    assert (first.shape, second.shape) == ((3, 8), (32, 3))
    rest = torch.linalg.svdvals(matrix)[3:].square().sum().sqrt()
    torch.testing.assert_close((matrix - second @ first).norm(), rest)


def test_the_rank_has_equal_parameters():
    base = FFNWeights(*(torch.empty(shape, device="meta") for shape in ((3072, 768), (768, 3072), (3072,))))
    base = FFNWeights(base.up, base.down, base.up_bias, None, None, torch.empty(768, device="meta"))
    assert equal_rank(base, 768) == 153  # the paper's, for RoBERTa-base
    for gated in (False, True):
        weights = random_weights(units=64, size=16, gated=gated)
        rank = equal_rank(weights, 32)
        cost = (3 if gated else 2) * (64 + 16)
        used = rank * cost + 64
        assert used <= 32 * weights.unit_size < used + cost


def test_svd_refuses_what_no_rank_can_do():
    with pytest.warns(FusionWarning), pytest.raises(FusionConfigError, match="rank 1"):
        reduce_model(tiny_model("gpt2"), FusionConfig(width=1), "svd")


def test_sketches_are_right_in_the_mean():
    weights = random_weights(units=16, size=4)
    product, wanted = 0, weights.down @ weights.up
    for seed in range(400):
        gaussian = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sketched = sketch_units(weights, gaussian / math.sqrt(8))
        product = product + sketched.down @ sketched.up / 400
    assert (product - wanted).norm() / wanted.norm() < 0.15
    orthogonal = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    exact = sketch_units(weights, orthogonal)  # S Sᵀ = 1: exact for a linear FFN
    inputs = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(run(exact, inputs, lambda x: x), run(weights, inputs, lambda x: x))


@pytest.mark.parametrize("gated", [False, True])
def test_folded_clusters_keep_the_outputs_of_duplicates(gated):
    distinct = random_weights(units=4, gated=gated)
    folded = fold_clusters(duplicated(distinct, 3), np.tile(np.arange(4), 3))
    inputs = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(run(folded, inputs), run(duplicated(distinct, 3), inputs))
    torch.testing.assert_close(folded.up, distinct.up * math.sqrt(3))
    torch.testing.assert_close(folded.down, distinct.down * math.sqrt(3))


def test_the_fit_lowers_the_discrepancy():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    features = centres.repeat_interleave(20, dim=0) + 0.3 * torch.randn(80, 6, generator=generator)
    bandwidth = 2 * (features - features.mean(dim=0)).square().sum(dim=1).mean().item()
    start = features[torch.randperm(80, generator=torch.Generator().manual_seed(5))[:8]]
    fitted = fit_units(features, 8, seed=5)
    assert discrepancy(fitted, features, bandwidth) < discrepancy(start, features, bandwidth) - 1e-3
    whole = fit_units(features, 80, seed=5)
    assert torch.equal(whole.sort(dim=0).values, features.sort(dim=0).values)


def test_pruning_keeps_the_largest_units_whole():
    weights = random_weights()
    kept = largest(unit_magnitudes(weights), 8)
    assert kept.tolist() == sorted(kept.tolist())
    rest = [unit for unit in range(32) if unit not in kept.tolist()]
    assert unit_magnitudes(weights)[kept].min() >= unit_magnitudes(weights)[rest].max()
    small = weights.picked(kept.numpy())
    assert torch.equal(small.up, weights.up[kept])
    assert torch.equal(small.down, weights.down[:, kept])
    assert largest(torch.ones(5), 2).tolist() == [0, 1]


@torch.no_grad()
def test_saliency_finds_the_units_that_train():
    """Units whose weights are zero on both sides move no output to first order; NTK-SAP must drop them first."""
    model = tiny_model("gpt2").double()
    for ffn in find_ffns(model):
        weights = ffn.read()  # views of the model's own weights
        for part in (weights.up, weights.up_bias, weights.down.T):
            part[::2] = 0
    ffns = list(find_ffns(model))
    masks = {ffn.name: torch.ones(64, dtype=torch.float64) for ffn in ffns}
    saliencies = ntk_saliencies(model, masks, ffns, torch.Generator().manual_seed(0))
    for ffn in ffns:
        assert saliencies[ffn.name][::2].max() < saliencies[ffn.name][1::2].median()
    small = reduce_model(model, FusionConfig(width=32), "ntk_sap")
    for ffn, before in zip(find_ffns(small), ffns, strict=True):
        assert (ffn.read().up.norm(dim=1) > 0).float().mean() > 0.9
        assert {tuple(row) for row in ffn.read().up.tolist()} <= {tuple(row) for row in before.read().up.tolist()}


@torch.no_grad()
def test_saliency_is_the_derivative_by_the_masks():
    """With one draw, finite differences in one mask entry give the same number."""
    from hf_mlp_fusion.baselines import ntk_sap

    model = tiny_model("gpt2").double()
    ffns = list(find_ffns(model))
    masks = {ffn.name: torch.ones(64, dtype=torch.float64) for ffn in ffns}
    analytic = ntk_saliencies(model, masks, ffns, torch.Generator().manual_seed(3))["h.1.mlp"][5].item()

    def objective(entry):
        generator = torch.Generator().manual_seed(3)
        changed = {name: mask.clone() for name, mask in masks.items()}
        changed["h.1.mlp"][5] = entry
        names = [name for ffn in ffns for name in ffn.parameter_names()]
        weights = dict(model.named_parameters())
        size = torch.cat([weights[name].flatten() for name in names]).square().mean().sqrt().item()
        total = 0.0
        with ntk_sap._gated(ffns, changed):
            for _ in range(ntk_sap._DRAWS):
                batch = ntk_sap._random_batch(model, generator)
                noise = {name: torch.randn(weights[name].shape, generator=generator) for name in names}
                before = model.base_model(**batch).last_hidden_state
                for name in names:
                    weights[name].add_(ntk_sap._EPSILON * size * noise[name])
                after = model.base_model(**batch).last_hidden_state
                for name in names:
                    weights[name].sub_(ntk_sap._EPSILON * size * noise[name])
                total += (after - before).square().sum().item()
        return total

    numeric = (objective(1 + 1e-4) - objective(1 - 1e-4)) / 2e-4
    assert analytic == pytest.approx(abs(numeric), rel=1e-3)


def test_every_second_layer_of_those_named_is_dropped():
    model = tiny_model("bert", num_hidden_layers=6)
    assert kept_layers(model, FusionConfig(width=16)) == [0, 2, 4]
    assert kept_layers(model, FusionConfig(width=16, layers="last:4")) == [0, 1, 2, 4]
    small = reduce_model(model, FusionConfig(width=16, layers="last:4"), "layer_drop")
    assert type(small) is transformers.BertForMaskedLM
    assert small.config.num_hidden_layers == 4
    for new, old in enumerate([0, 1, 2, 4]):
        for name, tensor in small.bert.encoder.layer[new].state_dict().items():
            assert torch.equal(tensor, model.bert.encoder.layer[old].state_dict()[name])
    assert small.cls.predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight


def test_layers_that_are_not_alike_are_not_dropped():
    with pytest.raises(UnsupportedModelError, match="one stack"):
        reduce_model(tiny_model("switch_transformers"), FusionConfig(width=16), "layer_drop")
    with pytest.raises(FusionConfigError, match="two or more"):
        reduce_model(tiny_model("bert"), FusionConfig(width=16, layers="last:1"), "layer_drop")
    assert TINY_CONFIGS["bert"].num_hidden_layers == 3
