"""Fixtures: tiny models of every family with random weights, and the really trained small models where they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it: tests never use the network
os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # likewise: what bars show is tested
# Before MKL reads it: on some processors it adds up in an order that goes by where in memory a matrix lies, and even a
# stock model that was loaded again differs in the last bits.
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from transformers import PreTrainedModel

from hf_mlp_fusion.cli import main
from hf_mlp_fusion.modeling.find import find_ffns

# Tiny tensors: threads would only wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start, too: they share the cores
# What hypothesis takes for slow is a busy machine.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

REAL_MODELS = Path(os.environ.get("HF_MLP_FUSION_TEST_MODELS", Path(__file__).parents[2] / "shared" / "models"))
BUILT_MODELS = Path(os.environ.get("HF_MLP_FUSION_BUILT_MODELS", Path(__file__).parents[1] / "real-models"))

_BERT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
TINY_CONFIGS = {
    "bert": transformers.BertConfig(**_BERT_SIZES),
    "roberta": transformers.RobertaConfig(**_BERT_SIZES),
    "gpt2": transformers.GPT2Config(
        vocab_size=99,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    ),
    "switch_transformers": transformers.SwitchTransformersConfig(
        vocab_size=99,
        d_model=16,
        d_kv=8,
        d_ff=64,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=2,
        num_experts=4,
        expert_capacity=64,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        # The stock default reads `add_router_probs`, a field that saved configs may lack.
        add_router_probs=False,
    ),
}
TINY_HEADS = {
    "bert": transformers.BertForMaskedLM,
    "roberta": transformers.RobertaForMaskedLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "switch_transformers": transformers.SwitchTransformersForConditionalGeneration,
}


def tiny_model(family: str, head: type[PreTrainedModel] | None = None, **changes: object) -> PreTrainedModel:
    """A tiny model with random weights and biases, the same at every call."""
    config = type(TINY_CONFIGS[family]).from_dict(TINY_CONFIGS[family].to_dict() | changes)
    torch.manual_seed(0)
    model = (head or TINY_HEADS[family])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # stock biases start at zero, which would hide faults in them
                parameter.normal_(std=0.1)
    return model


def model_inputs(model: PreTrainedModel, batch: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    """Inputs that any text model accepts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, min(90, model.config.vocab_size), (batch, length), generator=generator)
    if "MultipleChoice" in type(model).__name__:
        return {"input_ids": ids[:, None]}
    if model.config.is_encoder_decoder and "EncoderModel" not in type(model).__name__:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    return {"input_ids": ids}


@torch.no_grad()
def copy_units(model: PreTrainedModel, originals: torch.Tensor) -> None:
    """Makes the units of each FFN copies of some of them: unit i of unit `originals[i]`."""
    for ffn in find_ffns(model):
        weights = ffn.read()  # views of the model's own weights
        for part in (weights.up, weights.up_bias, weights.gate, weights.gate_bias, weights.down.T):
            if part is not None:
                part.copy_(part[originals])


def repeat_units(model: PreTrainedModel, times: int) -> None:
    """Makes the units of each FFN copies of its first ones, `times` of each."""
    width = next(find_ffns(model)).width
    copy_units(model, torch.arange(width // times).repeat(times))


@torch.no_grad()
def first_output(model: PreTrainedModel) -> torch.Tensor:
    """The first output (logits or hidden states) of a model in eval mode."""
    return model.eval()(**model_inputs(model))[0]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command; gives its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-mlp-fusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def real_model_path() -> Callable[[str], Path]:
    """Path of a really trained model; skips where there is none.

    The small ones are `roberta-mini`, `gpt2-mini`, `switch-mini`; `make models` builds `all-mpnet-base-v2` and
    `smollm2-135m-instruct`.
    """

    def find(name: str) -> Path:
        for path in (REAL_MODELS / name, BUILT_MODELS / name):
            if (path / "config.json").is_file():
                return path
        pytest.skip(
            f"{name} is not there: `make models` builds two, HF_MLP_FUSION_TEST_MODELS names a folder of others"
        )

    return find


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Path of the MiniLM that the `demo` extra installs."""
    from hf_mlp_fusion.files.minilm import minilm_folder

    return minilm_folder()
