import pytest
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, freeze_routers, fuse_model


@pytest.mark.parametrize("fuse", [False, True])
def test_routers_freeze(fuse):
    model = tiny_model("switch_transformers")
    if fuse:
        model = fuse_model(model, FusionConfig(width=16))
    names = freeze_routers(model)
    assert len(names) == 4
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in names) == ("router" not in name)


def test_dense_models_have_none():
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel has no routers"):
        freeze_routers(tiny_model("gpt2"))
