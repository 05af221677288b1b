"""Experts of stacks: calibrated on the tokens that are routed to them, weighted by the gate; rare ones fall back."""

import pytest
import torch
from any_family import WIDTH, inputs_of_any, tiny_family_model

from hf_mlp_fusion import FusionConfig, FusionWarning, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion.calibration import collect_moments
from hf_mlp_fusion.measure import output_error
from hf_mlp_fusion.modeling.find import find_ffns

HALF = FusionConfig(width=WIDTH // 2, power=1, ntk="none")


def batches(model, count=6):
    return [inputs_of_any(model, batch=4, seed=seed) for seed in range(count)]


def lonely(model, expert, count):
    """Lets the first tokens of all, in each pass the same, go to an expert of the first layer, and no others."""
    chosen = []

    def redirect(router, args, output):
        logits, scores, index = output
        index = torch.stack([index[:, 0] % 2, 2 + index[:, 0] % 2], dim=1)  # to 0 or 1, and to 2 or 3
        index[index == expert] = 3
        for row, own in enumerate(logits):
            if len(chosen) < count:
                chosen.append(own)
            if any(own.equal(other) for other in chosen):
                index[row, 1] = expert
        return logits, scores, index

    model.model.layers[0].mlp.gate.register_forward_hook(redirect)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text"])
def test_moments_are_those_of_the_tokens_routed_to_an_expert(name):
    """Weighted by the gate: naively, token by token."""
    model = tiny_family_model(FAMILIES[name]).double()
    if name != "llama4_text":
        model.set_experts_implementation("eager")
    ffns = [ffn for ffn in find_ffns(model) if ffn.expert is not None][:4]
    seen = {ffn.name: ([], [], []) for ffn in ffns}

    def keep(_, args):
        tokens = args[0]
        for ffn in ffns:
            if len(args) == 1:  # Llama 4: all tokens an expert, zeros where they are not its own
                own = [(token, 1.0) for token in tokens.view(4, -1, tokens.shape[-1])[ffn.expert] if token.any()]
            else:
                own = [
                    (token, float(weight))
                    for token, index, weights in zip(tokens, args[1], args[2], strict=True)
                    for place, weight in zip(index, weights, strict=True)
                    if place == ffn.expert
                ]
            for token, weight in own:
                hidden = ffn.hidden(token[None], ffn.read())[0]
                for kept, value in zip(seen[ffn.name], (hidden, ffn.outputs(token[None])[0], weight), strict=True):
                    kept.append(value)

    hook = ffns[0].host.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in batches(model, 2):
            model(**batch)
    hook.remove()
    for name_of, moments in collect_moments(model, ffns, batches(model, 2)).items():
        hidden, output, weights = seen[name_of]
        h, y, w = torch.stack(hidden), torch.stack(output), torch.tensor(weights).double()
        assert moments.count == len(h)
        if ffns[0].read().down_bias is not None:
            h, y = h - (w @ h) / w.sum(), y - (w @ y) / w.sum()
        torch.testing.assert_close(moments.gram, (w[:, None] * h).T @ h / w.sum(), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(moments.cross, (w[:, None] * h).T @ y / w.sum(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("tokens", [0, 4])
def test_rare_experts_stay_near_their_fusion_without_data_and_are_named(tokens):
    model = tiny_family_model(FAMILIES["mixtral"])
    plain = fuse_model(model, HALF)
    lonely(model, 2, tokens)
    with pytest.warns(FusionWarning, match=rf"1 of 8 experts.*layers\.0\.mlp\.experts\.2 \({tokens}\)"):
        fused = fuse_model(model, HALF, calibration=batches(model))
    reports = {report.name: report for report in fused.fusion_report.ffns}
    rare = reports["layers.0.mlp.experts.2"]
    assert rare.tokens == tokens
    assert rare.method == ("clusters+output" if tokens else "clusters")
    assert reports["layers.0.mlp.experts.1"].method == "obs+output"
    assert "layers.0.mlp.experts.2" in fused.fusion_report.warnings[-1]
    ours, theirs = (next(f for f in find_ffns(m) if f.name == rare.name).read() for m in (fused, plain))
    assert ours.up.equal(theirs.up)
    moved = float((ours.down - theirs.down).norm() / theirs.down.norm())
    assert moved < 0.5
    assert (moved == 0) == (tokens == 0)


def test_calibration_lowers_the_error_of_every_expert():
    model = tiny_family_model(FAMILIES["olmoe"])
    held_out = [inputs_of_any(model, batch=8, seed=99)]
    many = [inputs_of_any(model, batch=16, seed=seed) for seed in range(12)]
    errors = [
        output_error(model, fused, held_out).ffns
        for fused in (fuse_model(model, HALF), fuse_model(model, HALF, calibration=many))
    ]
    assert all(errors[1][name] < errors[0][name] for name in errors[0])
