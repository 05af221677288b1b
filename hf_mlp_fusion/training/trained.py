"""What of a fused model trains while it is tuned."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from ..measure import reduced_ffns
from ..modeling.find import find_ffns

__all__ = ["TRAINED"]


def _ffns(model: PreTrainedModel) -> set[str]:
    """The weights and biases of the fused FFNs."""
    reduced = set(reduced_ffns(model))
    return {name for ffn in find_ffns(model) if ffn.name in reduced for name in ffn.parameter_names()}


def _ffns_and_norms(model: PreTrainedModel) -> set[str]:
    """Those and the norms of the body."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    norms = [module for module in model.base_model.modules() if "norm" in type(module).__name__.lower()]
    return _ffns(model) | {names[id(p)] for norm in norms for p in norm.parameters(recurse=False)}


def _body(model: PreTrainedModel) -> set[str]:
    """The body but for its embeddings: attention and routers too."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        tables += head.parameters()
    left = {id(parameter) for parameter in tables}
    body = {id(parameter) for parameter in model.base_model.parameters()} - left
    return _ffns(model) | {name for name, parameter in model.named_parameters() if id(parameter) in body}


def _all(model: PreTrainedModel) -> set[str]:
    """Everything: embeddings and heads too."""
    return {name for name, _ in model.named_parameters()}


TRAINED: dict[str, Callable[[PreTrainedModel], set[str]]] = {
    "ffns": _ffns,
    "ffns+norms": _ffns_and_norms,
    "body": _body,
    "all": _all,
}
"""Choices of what trains by name: functions of a fused model that give names of parameters. P is none."""
