import copy
import sys

import pytest
import torch
import transformers
from conftest import repeat_units, tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.measure import NTK, compare_ntks, ntk, ntk_error, parameter_blocks
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.rows import Rows

CLASSIFIER = transformers.BertForSequenceClassification
CASES = [("bert", None), ("bert", CLASSIFIER), ("bert", transformers.BertModel), ("gpt2", None)]
CASES += [("switch_transformers", None)]


def batches_for(model, family, samples=4):
    return make_batches(model, tiny_tokenizer(family), tiny_texts(40), samples=samples, max_length=12, batch_size=2)


def naive_output(model, batch):
    """The scalar output of one sample, written out."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    out = model(**inputs)
    if "labels" in batch:
        labels, logits = batch["labels"][0], out.logits[0]
        if type(model).__name__.endswith("GPT2LMHeadModel"):
            labels, logits = labels[1:], logits[:-1]
        return torch.stack(
            [logits[i].log_softmax(-1)[token] for i, token in enumerate(labels) if token != -100]
        ).mean()
    if "logits" in out:
        return out.logits[0].softmax(-1)[0]
    length = int(batch["attention_mask"].sum())
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0)).to(out.last_hidden_state)
    return out.last_hidden_state[0, :length].mean(dim=0) @ direction / direction.norm()


def naive_gradients(model, batches, names):
    parameters = [dict(model.named_parameters())[name] for name in names]
    rows = []
    for batch in batches:
        for index in range(len(batch["input_ids"])):
            sample = {name: tensor[index : index + 1] for name, tensor in batch.items()}
            gradients = torch.autograd.grad(naive_output(model, sample), parameters, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows)


@pytest.mark.parametrize(("family", "head"), CASES)
@pytest.mark.parametrize("kernel", ["adam", "sgd"])
def test_the_kernel_equals_that_of_a_loop_over_samples(family, head, kernel):
    model = tiny_model(family, head).double()
    batches = batches_for(model, family)
    measured = ntk(model, batches, kernel)
    wanted = 0
    for ffn in find_ffns(model):
        gradients = naive_gradients(model, batches, ffn.parameter_names())
        block = gradients @ (gradients.sign() if kernel == "adam" else gradients).T
        # A gradient that is zero but for rounding has a sign of its own in each order of summation.
        torch.testing.assert_close(measured.blocks[ffn.name], block, rtol=1e-6, atol=1e-9)
        wanted = wanted + block
    torch.testing.assert_close(measured.total, wanted, rtol=1e-6, atol=1e-9)
    assert measured.total.norm() > 0


def test_the_kernel_of_a_regression_is_that_of_its_number():
    """Its softmax is 1 whatever the weights, and would have no gradient."""
    model = tiny_model("bert", CLASSIFIER, num_labels=1).double()
    batches = batches_for(model, "bert")
    names = [name for ffn in find_ffns(model) for name in ffn.parameter_names()]
    rows = []
    for batch in batches:
        for number in model(**batch).logits[:, 0]:
            gradients = torch.autograd.grad(
                number, [dict(model.named_parameters())[name] for name in names], retain_graph=True
            )
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    gradients = torch.stack(rows)
    measured = ntk(model, batches).total
    torch.testing.assert_close(measured, gradients @ gradients.sign().T, rtol=1e-6, atol=1e-9)
    assert measured.norm() > 0


@pytest.mark.parametrize("family", ["gpt2", "roberta", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_chunks_change_nothing(family):
    model = tiny_model(family).double()
    batches = batches_for(model, family)
    whole = ntk(model, batches)
    one_ffn = 4 * 8 * next(find_ffns(model)).parameter_count(64)
    for gradient_bytes in (one_ffn, one_ffn // 3):
        chunked = ntk(model, batches, gradient_bytes=gradient_bytes)
        for name, block in whole.blocks.items():
            torch.testing.assert_close(chunked.blocks[name], block, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "gpt2", "switch_transformers"])
def test_what_linear_maps_saw_and_autograd_agree(family, monkeypatch):
    """Hooks make the kernels of linear maps; the gradients themselves, which any other parameter needs, the same."""
    module = sys.modules[ntk.__module__]  # the package gives the function the module's name
    model = tiny_model(family).double()
    batches = batches_for(model, family)
    seen = ntk(model, batches)
    monkeypatch.setattr(module, "linear_maps", lambda model: {})
    for name, block in ntk(model, batches).blocks.items():
        torch.testing.assert_close(seen.blocks[name], block, rtol=1e-6, atol=1e-9)


def test_one_pass_does_whatever_the_number_of_ffns(monkeypatch):
    module = sys.modules[ntk.__module__]
    model = tiny_model("gpt2").double()
    batches = batches_for(model, "gpt2")
    passes = []
    usual = module.token_gradients
    monkeypatch.setattr(module, "token_gradients", lambda *args: passes.append(1) or usual(*args))
    whole = ntk(model, batches)
    assert len(passes) == 1
    ntk(model, batches, gradient_bytes=1)  # a map a pass
    assert len(passes) == 1 + 2 * 3
    # A batch cut otherwise has the same rows.
    single = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for batch in batches for i in range(2)]
    torch.testing.assert_close(ntk(model, single).total, whole.total, rtol=1e-12, atol=0)


def test_a_module_that_is_called_several_times_adds_its_calls_up():
    config = transformers.AlbertConfig(
        vocab_size=99,
        embedding_size=16,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=3,
    )
    torch.manual_seed(0)
    model = transformers.AlbertForMaskedLM(config).double().eval()
    batches = batches_for(model, "bert")
    names = [name for name, _ in model.named_parameters() if ".ffn" in name]
    assert len(names) == 4
    gradients = naive_gradients(model, batches, names)
    measured = ntk(model, batches, parameters={"ffn": names}).total
    torch.testing.assert_close(measured, gradients @ gradients.sign().T, rtol=1e-6, atol=1e-9)


def test_parameters_of_any_kind_have_kernels():
    """A norm, an embedding, and one that is the head as well: no linear map alone makes their gradients."""
    model = tiny_model("gpt2").double()
    batches = batches_for(model, "gpt2")
    for name in ("transformer.ln_f.weight", "transformer.wpe.weight", "transformer.wte.weight"):
        gradients = naive_gradients(model, batches, [name])
        measured = ntk(model, batches, parameters=[name], gradient_bytes=4 * 8 * 100).total
        torch.testing.assert_close(measured, gradients @ gradients.sign().T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_output_units_of_a_parameter_have_kernels_that_add_up(family):
    model = tiny_model(family).double()
    batches = batches_for(model, family)
    ffn = next(find_ffns(model))
    names = [name for name in ffn.parameter_names() if f".{ffn.spec.up}." in name]
    whole = ntk(model, batches, parameters={"up": names}).total
    cut = {"some": [Rows(name, 0, 10) for name in names], "others": [Rows(name, 10, 64) for name in names]}
    parts = ntk(model, batches, parameters=cut)
    torch.testing.assert_close(parts.total, whole, rtol=1e-9, atol=1e-12)
    bias = naive_gradients(model, batches, names[1:])[:, :10]
    alone = ntk(model, batches, parameters={"bias": [Rows(names[1], 0, 10)]}).total
    torch.testing.assert_close(alone, bias @ bias.sign().T, rtol=1e-6, atol=1e-9)


def test_logits_that_a_model_changes_are_taken_as_they_are():
    """Gemma 2 caps its logits behind the output embeddings, so these alone do not give them."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = transformers.Gemma2Config(
        vocab_size=99, num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.01, **sizes
    )
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(config).double().eval()
    ids = torch.randint(2, 90, (2, 9))
    names = ["model.layers.0.mlp.down_proj.weight"]
    rows = []
    for row in ids:
        chosen = model(row[None]).logits[0, :-1].log_softmax(-1).gather(-1, row[1:, None])
        rows.append(torch.autograd.grad(chosen.mean(), model.model.layers[0].mlp.down_proj.weight)[0].flatten())
    gradients = torch.stack(rows)
    measured = ntk(model, [{"input_ids": ids, "labels": ids}], parameters=names).total
    torch.testing.assert_close(measured, gradients @ gradients.sign().T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "gpt2", "switch_transformers"])
def test_no_more_logits_are_there_at_once_than_asked_for(family, monkeypatch):
    model = tiny_model(family).double()
    batches = batches_for(model, family)
    whole = ntk(model, batches).total
    monkeypatch.setattr("hf_mlp_fusion.measure.log_probabilities.LOGIT_BYTES", 2 * 4 * 99)
    sizes = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *args: sizes.append(args[2].numel() // 99))
    torch.testing.assert_close(ntk(model, batches).total, whole, rtol=1e-6, atol=1e-9)
    hook.remove()
    assert max(sizes[2:]) <= 2  # the first rows tell whether it can be done


def test_the_model_is_left_as_it_was():
    model = tiny_model("switch_transformers").train()
    model.shared.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attention = model.config._attn_implementation
    ntk(model, batches_for(model, "switch_transformers"))
    assert model.training
    assert model.config._attn_implementation == attention
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def fold(fused):
    """Multiplies P into the down projections and sets it to 1: the same outputs, other weights."""
    folded = copy.deepcopy(fused)
    for ffn in find_ffns(folded):
        scaling = ffn.host.get_submodule(ffn.spec.activation)
        ffn.read().down.mul_(scaling.cluster_sizes)
        scaling.cluster_sizes.fill_(1)
    return folded


@pytest.mark.parametrize("family", ["bert", "gpt2", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_duplicated_units_keep_the_adam_kernel_and_folding_loses_it(family):
    """The paper's point: the outputs are the same, but only with P apart does Adam train alike."""
    model = tiny_model(family).double()
    repeat_units(model, 4)
    fused = fuse_model(model, FusionConfig(width=16, targets="all"))
    folded = fold(fused)
    batches = batches_for(model, family)
    for twin in (fused, folded):
        with torch.no_grad():
            inputs = {name: tensor for name, tensor in batches[0].items() if name != "labels"}
            torch.testing.assert_close(twin(**inputs).logits, model(**inputs).logits, rtol=1e-9, atol=1e-9)
    kept, lost = ntk_error(model, fused, batches), ntk_error(model, folded, batches)
    assert kept.total.relative < 1e-5
    assert max(error.relative for error in kept.ffns.values()) < 1e-5
    assert lost.total.relative > 0.2
    # What folding costs: a unit's down weights move the output once where its 4 originals moved it 4 times.
    for ffn in find_ffns(model):
        up, down = (
            [name for name in ffn.parameter_names() if name.endswith(f"{path}.weight")]
            for path in (ffn.spec.up, ffn.spec.down)
        )
        for names, ratio in ((up, 1.0), (down, 0.25)):
            before, after = (ntk(twin, batches, parameters=names) for twin in (model, folded))
            torch.testing.assert_close(after.total, ratio * before.total, rtol=1e-6, atol=1e-9)
            # Under SGD it is P apart that errs: n² where the original has n.
            before, after = (ntk(twin, batches, "sgd", names) for twin in (model, fused))
            torch.testing.assert_close(after.total, 4 * before.total, rtol=1e-6, atol=1e-9)


def test_errors_of_equal_and_of_scaled_kernels():
    model = tiny_model("gpt2").double()
    batches = batches_for(model, "gpt2")
    kernel = ntk(model, batches)
    same = compare_ntks(kernel, kernel).total
    assert (same.relative, same.size_ratio) == (0.0, 1.0)
    doubled = type(kernel)("adam", {name: 2 * block for name, block in kernel.blocks.items()})
    error = compare_ntks(kernel, doubled).total
    assert (error.relative, error.cosine, error.size_ratio) == pytest.approx((1.0, 1.0, 2.0))


def test_blocks_can_be_named():
    model = tiny_model("gpt2").double()
    batches = batches_for(model, "gpt2")
    weight, bias = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"
    apart = ntk(model, batches, parameters=[weight, bias])
    assert list(apart.blocks) == [weight, bias]
    joined = ntk(model, batches, parameters={"first": [weight, bias]})
    torch.testing.assert_close(joined.blocks["first"], apart.total)


def test_two_ways_to_the_kernel_of_the_ffns_that_fusion_changes():
    """By naming its weights, and by picking its blocks from the kernel of all FFNs."""
    model = tiny_model("bert", transformers.BertForSequenceClassification)
    batches = batches_for(model, "bert")
    fused = ntk(fuse_model(model, FusionConfig(width=16, layers="last:2")), batches)
    named = ntk(model, batches, parameters=parameter_blocks(model, list(fused.blocks)))
    whole = ntk(model, batches)
    assert len(named.blocks) == 2 < len(whole.blocks)
    torch.testing.assert_close(named.total, NTK("adam", {name: whole.blocks[name] for name in fused.blocks}).total)
    assert compare_ntks(named, fused).ffns.keys() == fused.blocks.keys()


def test_unknown_kernels_and_parameters_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(FusionConfigError, match="'adam', 'sgd'"):
        ntk(model, [], "adagrad")
    with pytest.raises(FusionConfigError, match="no parameter 'nothing'"):
        ntk(model, [], parameters=["nothing"])


def test_one_bar_for_both_kernels(monkeypatch):
    """The original's and the fused model's, which take the same time."""
    titles = []

    class Bar:
        def __init__(self, *, desc, leave=True, **_):
            titles.append((desc, leave))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, work):
            pass

        def set_description(self, title):
            pass

    model = tiny_model("bert")
    fused = fuse_model(model, FusionConfig(width=16))
    monkeypatch.setattr("hf_mlp_fusion.data.progress.transformers_logging.tqdm", Bar)
    ntk_error(model, fused, batches_for(model, "bert", samples=2))
    assert titles == [("NTK", False)]
