"""Layers compiled one by one, as users do it in a line: one graph for all layers, and the numbers of the model."""

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import compile_regions
from any_family import tiny_family_model
from conftest import tiny_model
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns

# torch looks at the gradient of a layer's input, and hides its own warning by showing none, which an error passes by.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

LAYERS = 10
"""More than `torch._dynamo.config.recompile_limit`."""


NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "use_cache": False},
    "llama": {"use_cache": False},
}


def fused(kind, layers=3, width=24):
    """A model fused on data, so that each layer has an s1 and an s2 of its own."""
    changes = {"num_hidden_layers": layers} | NO_DROPOUT[kind]
    stock = tiny_family_model(FAMILIES[kind], **changes) if kind == "llama" else tiny_model(kind, **changes)
    ids = batch_of(8, rows=64)["input_ids"]
    calibration = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    return fuse_model(stock, FusionConfig(width, power=1), calibration=calibration).train()


def layers_of(model):
    return {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}[model.config.model_type]


def batch_of(length, rows=2):
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "labels": ids}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_all_layers_share_a_graph_without_a_break(kind):
    """Two graphs: the second for any s1 and s2, in which calibrated layers differ, as for any length of the rows."""
    model = fused(kind, LAYERS)
    assert len({ffn.scaling.scales for ffn in find_ffns(model)}) == LAYERS
    batches = [batch_of(length) for length in (8, 16, 24)]
    expected = [loss_and_gradients(model, batch) for batch in batches]
    counter = CompileCounter()
    for layer in model.get_submodule(layers_of(model)):
        layer.compile(backend=counter, fullgraph=True)
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        compiled_loss, compiled_gradients = loss_and_gradients(model, batch)
        assert compiled_loss == loss
        for name, gradient in gradients.items():
            torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-5, atol=1e-7)
    assert counter.frame_count <= 4


@pytest.mark.every
def test_a_graph_for_each_width():
    """What `docs/speed.md` says of widths: eight of them, and no more, unless torch is told so."""
    model = fused("bert", LAYERS, {f"encoder.layer.{i}": 24 + i for i in range(LAYERS)})
    batch = batch_of(8)
    expected = loss_and_gradients(model, batch)[0]
    counter = CompileCounter()
    for layer in model.bert.encoder.layer:
        layer.compile(backend=counter, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit), torch.no_grad():
        model(**batch)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2 * LAYERS):
        assert loss_and_gradients(model, batch)[0] == expected


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_accelerate_compiles_the_same_regions(kind):
    model = fused(kind)
    batch = batch_of(8)
    expected = loss_and_gradients(model, batch)[0]
    compiled = compile_regions(model, backend="eager")
    assert len(compiled.get_submodule(layers_of(model))) == 3
    assert {type(layer).__name__ for layer in compiled.get_submodule(layers_of(model))} == {"OptimizedModule"}
    assert loss_and_gradients(compiled, batch)[0] == expected


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.every) for kind in ("bert", "gpt2")), "llama"]
)
def test_trainer_compiles_layers_and_trains_to_the_same_weights(kind, tmp_path, monkeypatch):
    batch = batch_of(8, rows=4)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(4)]
    trained = []
    for way in ("eager", "layers", "regional"):
        torch._dynamo.reset()
        AcceleratorState._reset_state(reset_partial_state=True)
        model = fused(kind)
        arguments = {"output_dir": tmp_path / way, "max_steps": 3, "per_device_train_batch_size": 2}
        arguments |= {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
        if way == "layers":
            for layer in model.get_submodule(layers_of(model)):
                layer.compile(backend="eager", fullgraph=True)
        if way == "regional":
            monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
            arguments |= {"torch_compile": True, "torch_compile_backend": "eager"}
        trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=rows)
        trainer.train()
        assert type(trainer.model_wrapped) is type(model)
        regions = trainer.model_wrapped.get_submodule(layers_of(model))
        assert (type(regions[0]).__name__ == "OptimizedModule") is (way == "regional")
        trainer.save_model()
        trained.append(model.state_dict())
        if kind == "bert":
            again = AutoModelForMaskedLM.from_pretrained(tmp_path / way).state_dict()
            assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    for state in trained[1:]:
        assert state.keys() == trained[0].keys()
        for name, value in trained[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.every
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's of itself
def test_compiled_to_machine_code():
    """By inductor, torch's own compiler: the numbers to rounding."""
    model = fused("llama")
    loss, gradients = loss_and_gradients(model, batch_of(8))
    for layer in model.model.layers:
        layer.compile(fullgraph=True)
    compiled_loss, compiled_gradients = loss_and_gradients(model, batch_of(8))
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-3, atol=1e-6)
