"""What the caller's context changes is put aside: the same bits come out, and they can be trained."""

import contextlib
import random

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_model
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, calibrate_ntk, export_plain, fuse_model
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.measure import ntk

CONFIG = FusionConfig(width=16)


@contextlib.contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another device": lambda: torch.device("meta"),
    "another dtype": lambda: _default_dtype(torch.float64),
}


def _fused(model, data):
    return fuse_model(model, CONFIG, calibration=data)


def _matched(model, data):
    fused = fuse_model(model, CONFIG)
    calibrate_ntk(fused, model, data[:2])
    return fused


def _baseline(model, data):
    return reduce_model(model, CONFIG, "svd")


@pytest.mark.parametrize("work", [_fused, _matched, _baseline])
@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_change_nothing(name, work):
    model = tiny_model("bert")
    data = batches(model)
    wanted = work(model, data).state_dict()
    with CONTEXTS[name]():
        found = work(model, data)
    assert all(item.equal(wanted[name]) and not item.is_inference() for name, item in found.state_dict().items())
    found.train()(**data[0], labels=data[0]["input_ids"]).loss.backward()


@pytest.mark.parametrize("name", CONTEXTS)
def test_kernels_and_exports_in_any_context(name, tmp_path):
    model = tiny_model("bert")
    fused = fuse_model(model, CONFIG)
    rows = [{**batch, "labels": batch["input_ids"]} for batch in batches(model, count=1)]
    wanted = ntk(model, rows).total
    with CONTEXTS[name]():
        assert ntk(model, rows).total.equal(wanted)
        export_plain(fused, tmp_path)
    assert transformers.BertForMaskedLM.from_pretrained(tmp_path).dtype == torch.float32


def test_random_states_stay(tmp_path):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    model = tiny_model("gpt2")
    before = states()
    fused = fuse_model(model, CONFIG)
    assert states() == before
    fuse_model(model, CONFIG, calibration=batches(model))
    reduce_model(model, CONFIG, "sketch")
    assert states() == before
    export_plain(fused, tmp_path)
    assert states() == before


def test_nan_is_told_with_its_ffn_and_batch():
    model = tiny_model("bert", transformers.BertModel)
    data = [{"inputs_embeds": torch.randn(3, 8, 16)} for _ in range(9)]
    data[4]["inputs_embeds"][1, 2, 3] = torch.nan
    for ntk_choice in ("none", "match"):
        with pytest.raises(DataError, match=r"encoder.layer.0 computes NaN or infinity on calibration batch 5"):
            fuse_model(model, FusionConfig(width=32, ntk=ntk_choice), calibration=data)


def test_half_precision_that_overflows_is_told():
    model = tiny_model("bert", transformers.BertModel).half()
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.bias.fill_(5.0)
        model.encoder.layer[1].output.dense.weight.fill_(6e4)
    data = [{"input_ids": torch.arange(5, 17).repeat(8, 1)} for _ in range(5)]
    with pytest.raises(DataError, match=r"encoder.layer.1 computes NaN or infinity .*load the model in float32"):
        fuse_model(model, FusionConfig(width=16), calibration=data)
