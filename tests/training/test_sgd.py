"""Plain SGD on fused models follows the original where theory says so: where units are copies of each other."""

import copy

import pytest
import torch
import transformers
from conftest import copy_units, model_inputs, tiny_model

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, fuse_model
from hf_mlp_fusion.fusion.kernel_size import _rescale
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.training import scale_gradients_for_sgd

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")

OPTIMIZERS = {
    "plain": {"lr": 1.0},
    "momentum": {"lr": 0.3, "momentum": 0.9},
    "nesterov and decay": {"lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
SIZES = [1, 3, 5, 7, 9, 11, 13, 15]  # 64 units that are copies of 8


def fused_pair(stock, power=1.0):
    """A model whose units are copies of each other, and the same fused to the distinct ones: they compute the same."""
    stock = stock.double().eval()
    copy_units(stock, torch.arange(64).double().sqrt().long())
    fused = fuse_model(stock, FusionConfig(width=len(SIZES), targets="all", power=power))
    assert all(sorted(ffn.owner.cluster_sizes.tolist()) == SIZES for ffn in find_ffns(fused))
    return stock, fused


def train(model, steps=5, **options):
    """A few steps of SGD on all FFNs, in eval mode: nothing is random. Returns what the model then computes."""
    names = {name for ffn in find_ffns(model) for name in ffn.parameter_names()}
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name in names], **options)
    inputs = model_inputs(model)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(2):  # accumulated
            model(**inputs)[0].sin().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return model(**inputs)[0]


def assert_follows(stock, fused, off=0.1, **options):
    unmended = copy.deepcopy(fused)
    before, wanted = train(stock, 0, **options), train(stock, **options)
    with scale_gradients_for_sgd(fused):
        mended = train(fused, **options)
    moved = (wanted - before).norm()
    assert moved > 1e-3
    assert (mended - wanted).norm() < 1e-6 * moved
    assert (train(unmended, **options) - wanted).norm() > off * moved


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        ("bert", "plain"),
        ("gpt2", "plain"),
        ("gpt2", "momentum"),
        ("gpt2", "nesterov and decay"),
        ("switch_transformers", "nesterov and decay"),
    ],
)
def test_it_follows_the_original_step_after_step(family, optimizer):
    assert_follows(*fused_pair(tiny_model(family)), **OPTIMIZERS[optimizer])


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_it_follows_at_every_power(power):
    assert_follows(*fused_pair(tiny_model("gpt2"), power), off=0.02, **OPTIMIZERS["nesterov and decay"])


@pytest.fixture
def gated_model():
    """Of a family with gated FFNs."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=99,
        d_model=16,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("scales", [{}, {"inner": 3.0, "outer": 0.4, "value": 1.7}], ids=["plain", "calibrated"])
def test_gates_and_the_scales_of_an_ntk_calibration(gated_model, scales):
    stock, fused = fused_pair(gated_model)
    for ffn in find_ffns(fused):
        _rescale(ffn, scales)
    assert_follows(stock, fused, **OPTIMIZERS["momentum"])


def test_it_can_be_undone_and_changes_no_forward():
    _, fused = fused_pair(tiny_model("gpt2"))
    inputs = model_inputs(fused)
    weight = fused.transformer.h[1].mlp.c_fc.weight
    before = fused(**inputs)[0]
    gradients = []
    for _ in range(2):
        undo = scale_gradients_for_sgd(fused)
        assert torch.equal(fused(**inputs)[0], before)
        fused(**inputs)[0].mean().backward()
        gradients.append(weight.grad)
        undo.close()
        fused.zero_grad()
    assert torch.equal(*gradients)
    fused(**inputs)[0].mean().backward()
    torch.testing.assert_close(weight.grad, gradients[0] * fused.transformer.h[1].mlp.cluster_sizes)


def test_models_without_fused_ffns_that_train_are_refused():
    with pytest.raises(UnsupportedModelError, match="no fused FFN whose weights train"):
        scale_gradients_for_sgd(tiny_model("bert"))
    _, fused = fused_pair(tiny_model("bert"))
    with pytest.raises(UnsupportedModelError, match="no fused FFN whose weights train"):
        scale_gradients_for_sgd(fused.requires_grad_(False))
