"""NTK-SAP (Wang, Li and Sun, ICLR 2023, arXiv 2304.02840), in its structured form: whole units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from ..data import Batch, evaluating, final_hidden_state
from ..fusion import LayerReducer, Method, ReducedFFN
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .prune import unit_magnitudes

__all__ = ["NTK_SAP", "ntk_saliencies"]

_EPSILON = 1e-2  # size of the perturbation, relative to that of the weights
_ROUNDS = 4  # of scoring and removing, the density falling by the same factor in each
_DRAWS = 4  # inputs and perturbations a round
_ROWS, _TOKENS = 4, 32  # of a random input


def ntk_saliencies(
    model: PreTrainedModel, masks: Mapping[str, Tensor], ffns: Sequence[FFN], generator: torch.Generator
) -> dict[str, Tensor]:
    """How much each unit matters to the trace of the NTK.

    The paper's saliency |∂ E‖f(x; θ ⊙ m) - f(x; (θ + Δθ) ⊙ m)‖² / ∂m|, Δθ ~ N(0, ε² 1): the expectation is ε² times
    the kernel's nuclear norm. Inputs x are random tokens, since the method is to need no data; f is the last hidden
    state, θ the weights of the FFNs, and a unit has one entry of m, behind its activation.

    Args:
        model: The model, its weights as pre-trained.
        masks: m of each FFN, `[I]`.
        ffns: The FFNs.
        generator: Draws inputs and perturbations.

    Returns:
        Saliencies by FFN, `[I]`, summed over draws; 0 for units that no input reached.
    """
    gates = {ffn.name: masks[ffn.name].clone().requires_grad_() for ffn in ffns}
    parameters = dict(model.named_parameters())
    names = [name for ffn in ffns for name in ffn.parameter_names()]
    count = sum(parameters[name].numel() for name in names)
    size = (sum(parameters[name].detach().double().square().sum().item() for name in names) / count) ** 0.5
    with evaluating(model), _gated(ffns, gates), _frozen(model), torch.enable_grad():
        for _ in range(_DRAWS):
            batch = _random_batch(model, generator)
            moved = {
                name: parameters[name].detach()
                + _EPSILON * size * torch.randn(parameters[name].shape, generator=generator).to(parameters[name])
                for name in names
            }
            change = final_hidden_state(model, batch) - functional_call(_Final(model), _inside(moved), (batch,))
            change.float().square().sum().backward()
    return {name: torch.zeros_like(gate) if gate.grad is None else gate.grad.abs() for name, gate in gates.items()}


class _Final(nn.Module):
    """A model up to its last hidden state, as a module that `functional_call` can take."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Returns the last hidden state."""
        return final_hidden_state(self.model, batch)


def _inside(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in parameters.items()}


@contextlib.contextmanager
def _gated(ffns: Sequence[FFN], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiplies the activations of each FFN by its gate."""
    hooks = [ffn.multiply_units(gates[ffn.name]) for ffn in ffns]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keeps the weights out of the backward, which is for the gates alone."""
    usual = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, trains in usual:
            parameter.requires_grad_(trains)


def _random_batch(model: PreTrainedModel, generator: torch.Generator) -> Batch:
    longest = getattr(model.config, "max_position_embeddings", None) or _TOKENS
    shape = (_ROWS, min(_TOKENS, longest // 2))
    names = ["input_ids"]
    if model.config.is_encoder_decoder and hasattr(model, "decoder"):
        names.append("decoder_input_ids")
    return {
        name: torch.randint(0, model.config.vocab_size, shape, generator=generator).to(model.device) for name in names
    }


def _prepare(model: PreTrainedModel, todo: Sequence[tuple[FFN, int]], config: FusionConfig) -> LayerReducer:
    ffns = [ffn for ffn, _ in todo]
    generator = torch.Generator().manual_seed(config.seed)
    magnitudes = {ffn.name: unit_magnitudes(ffn.read()) for ffn in ffns}
    masks = {name: torch.ones_like(values).to(model.dtype) for name, values in magnitudes.items()}
    kept: dict[str, np.ndarray] = {}
    for step in range(1, _ROUNDS + 1):
        saliencies = ntk_saliencies(model, masks, ffns, generator)
        for ffn, width in todo:
            density = (width / ffn.width) ** (step / _ROUNDS)
            # Removed units come first, then the least salient; units that no random token reached (of experts, say)
            # follow each other by magnitude.
            keys = (magnitudes[ffn.name], saliencies[ffn.name], masks[ffn.name])
            order = np.lexsort([key.float().cpu().numpy() for key in keys])
            kept[ffn.name] = np.sort(order[-max(width, round(density * ffn.width)) :])
            masks[ffn.name].zero_()[torch.from_numpy(kept[ffn.name])] = 1

    def reduce_layer(group: Sequence[tuple[FFN, int]]) -> Mapping[str, ReducedFFN[FFNWeights]]:
        return {ffn.name: ReducedFFN(ffn.read().picked(kept[ffn.name]), None, "ntk_sap") for ffn, _ in group}

    return reduce_layer


NTK_SAP = Method("ntk_sap", "narrow", _prepare)
"""The units that matter most to the NTK's trace, removed in rounds."""
