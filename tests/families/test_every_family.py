"""Each family, tiny: fused, saved, loaded by its Auto class, calibrated, exported, adapted, trained by a step."""

import pytest
import torch
import transformers
from any_family import WIDTH, inputs_of_any, main_head, output_of_any, tiny_family_model
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, export_plain, fuse_model
from hf_mlp_fusion.data import LANGUAGE_OBJECTIVES, objective_of
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.families.compat import auto_models_of
from hf_mlp_fusion.fusion import first_rows
from hf_mlp_fusion.measure import flops, latency, ntk_error, output_error
from hf_mlp_fusion.measure.scalars import scalar_outputs
from hf_mlp_fusion.modeling.find import find_ffns

HALF = FusionConfig(width=WIDTH // 2, targets="all")
# `tests/modeling/test_kinds.py` has one of each kind among the quick tests.
pytestmark = [pytest.mark.every, pytest.mark.parametrize("name", sorted(FAMILIES))]


def test_fuse_save_load(name, tmp_path):
    model = tiny_family_model(FAMILIES[name])
    ffns = list(find_ffns(model))
    assert {ffn.width for ffn in ffns} == {WIDTH} or name.startswith("dinov2") or name == "bloom"
    width = ffns[0].width
    assert output_of_any(fuse_model(model, FusionConfig(width=width, targets="all"))).equal(output_of_any(model))

    fused = fuse_model(model, FusionConfig(width=width // 2, targets="all"))
    assert type(fused).__name__ == f"Fused{type(model).__name__}"
    assert all(ffn.is_fused and ffn.width == width // 2 for ffn in find_ffns(fused))
    assert not output_of_any(fused).equal(output_of_any(model))
    fused.save_pretrained(tmp_path)
    auto = next(auto for auto, head in auto_models_of(type(model.config)) if head is type(model))
    again = auto.from_pretrained(tmp_path)
    assert type(again) is type(fused)
    assert output_of_any(again).equal(output_of_any(fused))


@pytest.mark.filterwarnings("ignore:.*saw 16 calibration tokens for")  # a pooling head sees one an image
def test_calibrate_export_adapt_train(name, tmp_path):
    model = tiny_family_model(FAMILIES[name])
    width = next(find_ffns(model)).width
    batches = [inputs_of_any(model, batch=4, seed=seed) for seed in range(4)]
    fused = fuse_model(model, FusionConfig(width=width // 2, targets="all"), calibration=batches)
    assert all(report.tokens > 0 and report.method == "obs+output" for report in fused.fusion_report.ffns)

    family = FAMILIES[name]
    if family.width_field is None and not all(spec.width_field for spec in family.ffns):
        with pytest.raises(UnsupportedModelError, match="no plain export"):
            export_plain(fused, tmp_path / "plain")
    else:
        export_plain(fused, tmp_path / "plain")
        plain = type(model).from_pretrained(tmp_path / "plain")
        torch.testing.assert_close(output_of_any(plain), output_of_any(fused), rtol=1e-4, atol=1e-4)

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    stacked = any(spec.stacked for spec in family.ffns)  # PEFT has no default targets for these, fused or not
    lora = LoraConfig(r=2, fan_in_fan_out=transposed, target_modules=["o_proj"] if stacked else None)
    adapted = get_peft_model(fused, lora).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    batch = dict(batches[0])
    if objective_of(model) in LANGUAGE_OBJECTIVES:
        batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"])
    scalar_outputs(model)(adapted, batch).sum().backward()
    optimizer.step()
    assert any("lora_B" in n and p.any() for n, p in adapted.named_parameters())


def test_measures(name):
    """None of them asks for texts."""
    model = tiny_family_model(FAMILIES[name])
    width = next(find_ffns(model)).width
    fused = fuse_model(model, FusionConfig(width=width // 2, targets="all"))
    batches = [inputs_of_any(model, batch=2, seed=seed) for seed in range(2)]
    error = output_error(model, fused, batches)
    assert 0 < error.mean < 10
    assert 0 < error.hidden_state < 10
    kernels = ntk_error(model, fused, first_rows(model, batches))
    assert set(kernels.ffns) == {ffn.name for ffn in find_ffns(model)}
    assert 0 < flops(fused, batches[0]) < flops(model, batches[0])
    assert latency(model, first_rows(model, batches)[0], training=True, seconds=0.0).median > 0


def test_every_head_is_registered(name):
    family = FAMILIES[name]
    stock_config = getattr(transformers, family.config_class)
    fused_config = type(
        fuse_model(
            tiny_family_model(family), HALF if name != "bloom" else FusionConfig(width=32, targets="all")
        ).config
    )
    heads = list(auto_models_of(stock_config))
    assert heads
    assert main_head(family) in [head for _, head in heads]
    for auto, head in heads:
        assert auto._model_mapping[fused_config].__name__ == f"Fused{head.__name__}", auto.__name__
