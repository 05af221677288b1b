"""What changes P, or casts it, is undone or refused when a model is written, not when it is read again."""

import copy

import pytest
import torch
from conftest import first_output, model_inputs, tiny_model
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, FusionWarning, fuse_model


def fused_model(family="gpt2", width=20):  # BERT has integers that casts and averages break in the stock model, too
    return fuse_model(tiny_model(family), FusionConfig(width=width))


def sizes_of(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith("cluster_sizes")}


def check_saved(model, folder, expected):
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    for name, sizes in expected.items():
        assert stored[name].dtype == torch.int32
        assert stored[name].equal(sizes), name
    again = type(model).from_pretrained(folder)
    assert first_output(again).equal(first_output(model))


@pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_of_all(dtype, tmp_path):
    model = fused_model()
    expected = sizes_of(copy.deepcopy(model))
    model.type(dtype)
    assert {sizes.dtype for sizes in sizes_of(model).values()} == {torch.int32}
    check_saved(model, tmp_path, expected)


def test_a_cast_that_would_lose_units(tmp_path):
    """257 is no bfloat16."""
    model = fuse_model(tiny_model("gpt2", n_inner=512), FusionConfig(width=256))
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "known_sizes"):
                module.cluster_sizes.fill_(1)
                module.cluster_sizes[0] = 257
                module.remember()
    expected = sizes_of(copy.deepcopy(model))
    check_saved(model.type(torch.bfloat16), tmp_path, expected)


def test_an_average_over_buffers(tmp_path):
    model = fused_model()
    expected = sizes_of(copy.deepcopy(model))
    average = AveragedModel(model, avg_fn=lambda mean, new, count: mean * 0.9 + new * 0.1, use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    changed = {
        name: module.cluster_sizes for name, module in average.module.named_modules() if hasattr(module, "known_sizes")
    }
    assert any(not sizes.equal(expected[f"{name}.cluster_sizes"]) for name, sizes in changed.items())
    with pytest.warns(FusionWarning, match="cluster_sizes was changed by something that takes buffers for averages"):
        check_saved(average.module, tmp_path, expected)


@pytest.mark.filterwarnings("ignore:.*takes buffers for averages:hf_mlp_fusion.FusionWarning")
@pytest.mark.parametrize("change", ["zero", "negative", "doubled", "truncated"])
def test_other_changes(change, tmp_path):
    model = fused_model()
    expected = {name: sizes.clone() for name, sizes in sizes_of(model).items()}
    for module in model.modules():
        if hasattr(module, "known_sizes"):
            new = {
                "zero": lambda sizes: sizes.zero_(),
                "negative": lambda sizes: sizes.neg_(),
                "doubled": lambda sizes: sizes.mul_(2),
                "truncated": lambda sizes: sizes.sub_(1),
            }[change]
            new(module.cluster_sizes)
    check_saved(model, tmp_path, expected)


def test_a_mean_of_models(tmp_path):
    """A soup of fine-tuned copies: floats, and exact."""
    models = [fused_model() for _ in range(3)]
    for number, model in enumerate(models):
        model.transformer.wpe.weight.data.add_(number)
    states = [model.state_dict() for model in models]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
    expected = sizes_of(copy.deepcopy(models[0]))
    soup = fused_model()
    soup.load_state_dict(mean)
    check_saved(soup, tmp_path, expected)
    assert first_output(soup).isfinite().all()


def test_a_mean_that_is_no_p_is_refused_when_it_is_loaded():
    model = fused_model()
    state = {
        name: tensor.float() * 0.5 if "cluster_sizes" in name else tensor
        for name, tensor in model.state_dict().items()
    }
    with pytest.raises(BrokenCheckpointError, match="cluster_sizes"):
        model.load_state_dict(state)


def test_what_cannot_be_undone_is_not_written(tmp_path):
    model = fused_model()
    module = next(module for module in model.modules() if hasattr(module, "known_sizes"))
    module.known_sizes = None
    module.cluster_sizes.zero_()
    with pytest.raises(BrokenCheckpointError, match="cluster sizes are positive"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_p_on_the_meta_device_is_let_be():
    model = fused_model()
    state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_copies_and_training_keep_what_is_known(tmp_path):
    model = copy.deepcopy(fused_model()).train()
    expected = sizes_of(copy.deepcopy(model))
    inputs = model_inputs(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    check_saved(model.eval(), tmp_path, expected)
    assert all(module.known_sizes is not None for module in model.modules() if hasattr(module, "known_sizes"))
