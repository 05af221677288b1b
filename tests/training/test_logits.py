"""Tuning on logits: the divergence is what it should be, whatever the head, and what trains is what was asked for."""

import copy
import math

import pytest
import torch
import transformers
from conftest import tiny_model
from test_layerwise import NARROW, collate, make_trainer, state_of
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from tuning_rows import tuning_rows

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, fuse_model
from hf_mlp_fusion.data import with_decoder_inputs
from hf_mlp_fusion.measure import divergence, kl
from hf_mlp_fusion.measure.kl import kl_divergence
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.training import TRAINED, TuningTrainer

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")

CAPPED = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "final_logit_softcapping": 2.0,
    "tie_word_embeddings": True,
}
STACKED = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "max_position_embeddings": 40,
}


def made(cls, config):
    torch.manual_seed(0)
    model = cls(config).eval()
    if hasattr(config, "num_local_experts"):
        model.set_experts_implementation("eager")  # the only one for doubles
    return model


@torch.no_grad()
def classifier(labels, problem=None):
    """With FFNs that matter to what it says."""
    labels = {"id2label": {number: str(number) for number in range(labels)}, "problem_type": problem}
    model = tiny_model("bert", transformers.BertForSequenceClassification, **labels)
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name and name.endswith("weight"):
            parameter.mul_(8)
    return model


MODELS = {
    "causal": lambda: tiny_model("gpt2"),
    "masked": lambda: tiny_model("roberta"),
    "seq2seq, experts": lambda: tiny_model("switch_transformers"),
    "gated, capped": lambda: made(transformers.Gemma2ForCausalLM, transformers.Gemma2Config(**CAPPED)),
    "stacked experts": lambda: made(transformers.MixtralForCausalLM, transformers.MixtralConfig(**STACKED)),
    "classes": lambda: classifier(3),
    "regression": lambda: classifier(1),
    "several labels": lambda: classifier(3, "multi_label_classification"),
    "tags": lambda: tiny_model("roberta", transformers.RobertaForTokenClassification, num_labels=4),
    "answers": lambda: tiny_model("bert", transformers.BertForQuestionAnswering),
}


def entropy_gap(found, wanted):
    """KL(wanted ‖ found) of rows of logits, from torch's own cross entropy."""
    likely = wanted.softmax(-1)
    return cross_entropy(found, likely, reduction="none") - cross_entropy(wanted, likely, reduction="none")


def naive(kind, model, fused, batch):
    """The mean divergence, one item after the other, from whole logits."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    outputs = [m(**inputs) for m in (fused, model)]
    if kind == "answers":
        gaps = []
        for name in ("start_logits", "end_logits"):
            for row, (found, wanted) in enumerate(zip(*(output[name] for output in outputs), strict=True)):
                filled = batch["attention_mask"][row].bool()
                gaps.append(entropy_gap(found[filled][None], wanted[filled][None]))
        return torch.cat(gaps).mean()
    found, wanted = (output.logits for output in outputs)
    if kind == "regression":
        return mse_loss(found, wanted)
    if kind == "several labels":
        likely = wanted.sigmoid()
        return binary_cross_entropy_with_logits(found, likely) - binary_cross_entropy_with_logits(wanted, likely)
    if kind == "classes":
        return entropy_gap(found, wanted).mean()
    mask = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    return entropy_gap(found[mask], wanted[mask]).mean()


@pytest.fixture(params=MODELS)
def case(request):
    model = MODELS[request.param]().double()
    rows = tuning_rows(model)
    batch = with_decoder_inputs(model, collate(rows[:5]))
    return request.param, model, rows, batch


def test_the_loss_is_the_mean_divergence_of_what_is_no_padding(case, tmp_path):
    kind, model, rows, batch = case
    fused = fuse_model(model, NARROW)
    trainer = make_trainer(model, fused, tmp_path, "logits", rows)
    with torch.no_grad():
        wanted = naive(kind, model, fused, batch).item()
        loss = trainer.compute_loss(fused, collate(rows[:5])).item()
    assert wanted > 1e-9
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert divergence(model, fused, [batch]).mean == pytest.approx(wanted, rel=1e-6)
    halves = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(2), slice(2, 5))]
    assert divergence(model, fused, halves).mean == pytest.approx(wanted, rel=1e-6)


def test_the_gradient_is_that_of_whole_logits_also_in_pieces(case, tmp_path, monkeypatch):
    kind, model, rows, batch = case
    fused = fuse_model(model, NARROW)
    trainer = make_trainer(model, fused, tmp_path, "logits", rows)
    gradients = []
    for loss in (
        lambda: naive(kind, model, fused, batch),
        lambda: trainer.compute_loss(fused, collate(rows[:5])),
        lambda: monkeypatch.setattr(kl, "LOGIT_BYTES", 3 * 4 * 99) or trainer.compute_loss(fused, collate(rows[:5])),
    ):
        fused.zero_grad()
        loss().backward()
        gradients.append({n: p.grad.clone() for n, p in fused.named_parameters() if p.grad is not None})
    whole, once, pieces = gradients
    assert set(whole) == set(once) == set(pieces)
    for name, gradient in whole.items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_where_nothing_was_lost_nothing_moves(kind, tmp_path):
    """Not even by rounding, of which Adam would make whole steps."""
    model = MODELS[kind]()
    fused = fuse_model(model, FusionConfig(width=1.0, targets="all"))
    before = state_of(fused)
    trainer = make_trainer(model, fused, tmp_path, "logits", max_steps=3)
    same = True
    for batch in trainer.get_train_dataloader():
        batch = with_decoder_inputs(model, batch)
        with torch.no_grad():  # as the teacher runs: some processors multiply otherwise where gradients are kept
            wanted = logits(model, batch)
        same &= all(torch.equal(a, b) for a, b in zip(wanted, logits(fused, batch), strict=True))
    loss = trainer.train().training_loss
    assert loss < 1e-9
    if same:
        assert loss == 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())


def logits(model, batch):
    outputs = model.eval()(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    return [tensor for name, tensor in outputs.items() if name.endswith("logits")]


@pytest.mark.parametrize("kind", MODELS)
def test_it_brings_the_predictions_nearer(kind, tmp_path):
    model = MODELS[kind]()
    fused = fuse_model(model, NARROW)
    before, rows = state_of(fused), tuning_rows(model)
    # Random routers send tokens elsewhere once inputs differ: there, on the rows that were seen.
    held_out = [with_decoder_inputs(model, collate(rows[8:] if kind == "seq2seq, experts" else rows[:8]))]
    rate = 1e-2 if kind == "seq2seq, experts" else 3e-3  # its weights are larger
    trainer = make_trainer(model, fused, tmp_path, "logits", rows, num_train_epochs=6, learning_rate=rate)
    apart = [divergence(model, fused, held_out).mean]
    trainer.train()
    apart.append(divergence(model, fused, held_out).mean)
    assert apart[1] < 0.9 * apart[0]
    ffns = {name for ffn in find_ffns(fused) if ffn.is_fused for name in ffn.parameter_names()}
    assert {name for name, tensor in fused.state_dict().items() if not torch.equal(tensor, before[name])} <= ffns


WHAT = {
    "ffns": lambda name: ".mlp." in name,
    "ffns+norms": lambda name: ".mlp." in name or ".ln_" in name,
    "body": lambda name: ".h." in name or ".ln_" in name,
    "all": lambda name: True,
}


@pytest.mark.parametrize("train", TRAINED)
def test_what_trains_is_what_was_asked_for(train, tmp_path):
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    before, trainable = state_of(fused), [p.requires_grad for p in fused.parameters()]
    trainer = make_trainer(model, fused, tmp_path, "logits", max_steps=2)
    trainer = TuningTrainer(
        fused, trainer.args, teacher=model, target="logits", train=train, train_dataset=tuning_rows(model)
    )
    trainer.train()
    names = [name for name, _ in fused.named_parameters()]
    moved = [name for name in names if not torch.equal(fused.get_parameter(name), before[name])]
    assert moved == [name for name in names if WHAT[train](name)]
    assert [p.requires_grad for p in fused.parameters()] == trainable
    assert all(torch.equal(b, before[name]) for name, b in fused.named_buffers())
    assert fused.lm_head.weight is fused.transformer.wte.weight
    (done,) = fused.fusion_report.tuning
    assert (done.target, done.trained) == ("logits", train)


@pytest.mark.parametrize("kind", ["seq2seq, experts", "stacked experts", "classes"])
def test_the_body_is_all_but_embeddings_and_heads(kind):
    fused = fuse_model(MODELS[kind](), NARROW)
    names = {name for name, _ in fused.named_parameters()}
    body = TRAINED["body"](fused)
    left = ("embed_tokens", "shared", "lm_head", "embeddings.weight", "classifier", "relative_attention_bias")
    routers = {name for name in names if "router" in name or name.endswith("mlp.gate.weight")}
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    assert names - body == {
        name for name in names if any(part in name for part in left + tables) and name not in routers
    }
    assert TRAINED["ffns"](fused) < TRAINED["ffns+norms"](fused) < body < TRAINED["all"](fused)


def test_other_heads_and_none_are_refused(tmp_path):
    fused = fuse_model(tiny_model("roberta", transformers.RobertaForSequenceClassification), NARROW)
    with pytest.raises(UnsupportedModelError, match="FusedRobertaForSequenceClassification and a RobertaForMaskedLM"):
        make_trainer(tiny_model("roberta"), fused, tmp_path, "logits")
    other = tiny_model("roberta", transformers.RobertaForSequenceClassification, num_labels=5)
    trainer = make_trainer(other, fused, tmp_path, "logits")
    with pytest.raises(
        UnsupportedModelError, match=r"logits have the shape \[4, 5\], those of the fused model \[4, 2\]"
    ):
        trainer.train()
    bare = tiny_model("roberta", transformers.RobertaModel)
    trainer = make_trainer(bare, fuse_model(bare, NARROW), tmp_path, "logits")
    with pytest.raises(UnsupportedModelError, match="a RobertaModel returns no logits: compare hidden_states"):
        trainer.train()
    model = tiny_model("gpt2")
    with pytest.raises(FusionConfigError, match=r"train must be one of 'ffns', 'ffns\+norms', 'body', 'all', not 'x'"):
        TuningTrainer(fuse_model(model, NARROW), trainer.args, teacher=model, train="x")


def test_logits_of_all_tokens_are_never_there_at_once(tmp_path, monkeypatch):
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    trainer = make_trainer(model, fused, tmp_path, "logits")
    monkeypatch.setattr(kl, "LOGIT_BYTES", 4 * 4 * 99)
    shapes = []
    for head in (model.lm_head, fused.lm_head):
        head.register_forward_hook(lambda _, __, output: shapes.append(output.shape[:-1].numel()))
    trainer.train()
    assert max(shapes[2:]) == 4  # a token of each of four rows, then pieces; at first, eight tokens that are tried


def test_tokens_that_cannot_be_are_no_difference():
    """Logits of minus infinity on both sides."""
    found, wanted = torch.randn(2, 3, 7).unbind()
    found[:, 2] = wanted[:, 2] = -math.inf
    found.requires_grad_()
    value = kl_divergence(found, wanted)
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(value, entropy_gap(found[:, kept], wanted[:, kept]))
    value.sum().backward()
    assert found.grad.isfinite().all()


def test_a_copy_is_compared_as_the_model_itself():
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    batch = [collate(tuning_rows(model)[:5])]
    assert divergence(model, copy.deepcopy(fused), batch) == divergence(model, fused, batch)


@pytest.mark.parametrize("train", ["ffns", "all"])
def test_bfloat16_changes_the_result_little_and_leaves_the_model_in_float32(train, tmp_path):
    """Autocast keeps copies of the weights, which must not be those made without gradients."""
    results = []
    for half in (False, True):
        model = tiny_model("gpt2")
        fused = fuse_model(model, NARROW)
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
        arguments = make_trainer(model, fused, tmp_path, bf16=half, optim="sgd", learning_rate=0.1).args
        options = {"target": "logits", "train": train, "train_dataset": tuning_rows(model)}
        before = state_of(fused)
        trainer = TuningTrainer(fused, arguments, teacher=model, **options)
        trainer.train()
        trainer.accelerator.unwrap_model(fused, keep_fp32_wrapper=False)
        assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
        assert fused(torch.arange(9)[None]).logits.dtype == torch.float32
        results.append(
            {n: p.detach() - before[n] for n, p in fused.named_parameters() if not torch.equal(p, before[n])}
        )
    whole, half = results
    assert set(whole) == set(half)
    for name, moved in whole.items():
        assert (half[name] - moved).norm() < 0.1 * moved.norm() + 1e-7, name
