"""The metric of the loss: what it is, that padding is no part of it, and what fusion makes of it."""

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import tiny_model
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import loss_metric
from hf_mlp_fusion.fusion.loss_metric import loss_metrics, metric_rows
from hf_mlp_fusion.measure import log_probabilities
from hf_mlp_fusion.modeling.find import find_ffns

CLASSIFIER = transformers.BertForSequenceClassification


def metric(model, data, ffns=None):
    """G of each FFN."""
    return {
        name: factor @ factor.T
        for name, factor in loss_metrics(model, ffns or list(find_ffns(model)), data, 0).items()
    }


def tokens(rows, length=32, seed=3):
    return [{"input_ids": torch.randint(2, 99, (rows, length), generator=torch.Generator().manual_seed(seed))}]


def test_it_is_the_second_order_of_the_divergence(monkeypatch):
    """Tokens do not meet behind the last FFN: an error e in it costs e G e / 2 nats a token."""
    monkeypatch.setattr(loss_metric, "METRIC_TOKENS", 2**16)
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # tied, so that predictions differ from token to token
    last = list(find_ffns(model))[-1]
    data = tokens(512)
    found = metric(model, data, [last])[last.name].double()
    error = torch.linalg.eigh(found).eigenvectors[:, -1].float() * 0.02
    with torch.no_grad():
        before = model(**data[0]).logits.log_softmax(-1)
        last.exit.bias += error
        after = model(**data[0]).logits.log_softmax(-1)
    divergence = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1).mean()
    assert float(divergence) == pytest.approx(float(error.double() @ found @ error.double()) / 2, rel=0.05)


def test_padding_is_no_part_of_it():
    model = tiny_model("gpt2")
    (plain,) = tokens(4, 9)
    wide = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in plain.items()}
    mask = torch.zeros(4, 14, dtype=torch.long)
    mask[:, :9] = 1
    expected = metric(model, [plain | {"attention_mask": torch.ones(4, 9, dtype=torch.long)}])
    for name, found in metric(model, [wide | {"attention_mask": mask}]).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", ["switch_transformers", "mixtral"])
def test_experts_of_a_layer_share_one(family):
    model = tiny_model(family) if family == "switch_transformers" else tiny_family_model(FAMILIES[family])
    data = batches(model) if family == "switch_transformers" else tokens(4)
    ffns = [ffn for ffn in find_ffns(model) if ffn.expert is not None]
    found = loss_metrics(model, ffns, data, 0)
    layers = {}
    for ffn in ffns:
        layers.setdefault((ffn.stack, ffn.layer), []).append(found[ffn.name])
    assert all(torch.equal(item, items[0]) for items in layers.values() for item in items)
    assert len({float(items[0].norm()) for items in layers.values()}) == len(layers) > 1


@pytest.mark.parametrize(
    "labels", [{"num_labels": 3}, {"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}]
)
def test_classifiers_and_regressions_have_one(labels):
    model = tiny_model("bert", CLASSIFIER, **labels)
    found = metric(model, batches(model))
    assert len(found) == 3
    assert all(item.isfinite().all() and item.trace() > 0 for item in found.values())


def test_the_model_stays_as_it_was():
    model = tiny_model("bert").train()
    model.bert.embeddings.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    loss_metrics(model, list(find_ffns(model)), batches(model), 0)
    assert model.training
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_logits_come_in_pieces_and_need_no_labels(monkeypatch):
    """The largest tensor that the head makes is one piece of the tokens, whatever the batch has beside them."""
    monkeypatch.setattr(log_probabilities, "LOGIT_BYTES", 4 * 99 * 5)  # five tokens
    model = tiny_model("gpt2")
    seen = []
    model.lm_head.register_forward_hook(lambda *arguments: seen.append(arguments[2].shape[:-1].numel()))
    loss_metrics(model, list(find_ffns(model)), tokens(2, 16), 0)
    assert max(seen) <= 8  # the probe of eight tokens
    assert sum(count == 5 for count in seen) == 6  # of 32 tokens


def test_rows_are_spread_and_few(monkeypatch):
    monkeypatch.setattr(loss_metric, "METRIC_TOKENS", 64)
    data = [{"input_ids": torch.full((4, 8), number)} for number in range(8)]  # 256 tokens
    assert [batch["input_ids"].tolist() for batch in metric_rows(data)] == [[[number] * 8] for number in range(8)]
    assert len(metric_rows(data[:1])) == 1
    assert torch.equal(metric_rows(data[:1])[0]["input_ids"], data[0]["input_ids"])


@pytest.mark.parametrize(
    ("head", "expected"), [(None, "loss"), (CLASSIFIER, "output"), (transformers.BertModel, "output")]
)
def test_auto_takes_it_for_language_models(head, expected):
    model = tiny_model("bert", head)
    fused = fuse_model(model, FusionConfig(width=16, ntk="none"), calibration=batches(model, count=40))
    assert fused.fusion_report.recipe["metric"] == expected
    explicit = fuse_model(
        model, FusionConfig(width=16, ntk="none", metric=expected), calibration=batches(model, count=40)
    )
    assert all(torch.equal(tensor, explicit.state_dict()[name]) for name, tensor in fused.state_dict().items())


def test_predictions_stay_nearer_where_the_head_sees_half_of_the_output():
    """Half of the units write where the head does not look, and they write more."""
    model = tiny_model("gpt2", tie_word_embeddings=False)
    last = list(find_ffns(model))[-1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight[:, 8:] = 0.0
        model.lm_head.weight[:, :8] *= 30
        last.exit.weight.zero_()
        last.exit.weight[:32, :8] = torch.randn(32, 8, generator=generator)
        last.exit.weight[32:, 8:] = 3 * torch.randn(32, 8, generator=generator)
    data = batches(model, count=40)
    divergence = {}
    for chosen in ("output", "loss"):
        config = FusionConfig(width=16, layers="last:1", ntk="none", metric=chosen)
        fused = fuse_model(model, config, calibration=data)
        with torch.no_grad():
            found, wanted = (item(**data[0]).logits.log_softmax(-1) for item in (fused, model))
        divergence[chosen] = float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="sum"))
    assert divergence["loss"] < 0.8 * divergence["output"], divergence


def test_searched_widths_go_where_the_loss_is():
    """A layer that the head does not see needs no unit, whatever it writes."""
    model = tiny_model("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        for layer, size in zip(model.transformer.h, (1.0, 1.0, 0.01), strict=True):
            layer.mlp.c_proj.weight.mul_(size)
    data = batches(model, count=40)
    config = FusionConfig(width="auto:0.5", multiple_of=4, ntk="none")
    widths = [ffn.width for ffn in fuse_model(model, config, calibration=data).fusion_report.ffns]
    assert widths[2] < min(widths[:2])


def test_it_has_no_use_with_clusters():
    model = tiny_model("bert")
    with pytest.raises(FusionConfigError, match="metric='loss' has a use with selection='obs'"):
        fuse_model(model, FusionConfig(width=16, metric="loss"))
