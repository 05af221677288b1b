"""Expert load: how the routers of a mixture of experts share the tokens out."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..data import Batch, as_batches, evaluating, fitting_pieces, inputs_of, on_device, router_logits, unpadded
from ..errors import DataError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns

__all__ = ["ExpertLoad", "expert_load"]


@dataclass(frozen=True)
class ExpertLoad:
    """The load of the experts of one sparse layer.

    Args:
        tokens: Tokens that the router sends to each expert.
        dropped: How many of them find their expert full (`expert_capacity`) and pass it by.
    """

    tokens: tuple[int, ...]
    dropped: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's share of the tokens."""
        return tuple(count / sum(self.tokens) for count in self.tokens)

    @property
    def imbalance(self) -> float:
        """Load of the busiest expert over the mean: from 1, perfect balance, to the number of experts."""
        return max(self.shares) * len(self.tokens)

    @property
    def entropy(self) -> float:
        """Entropy of the shares over that of perfect balance: from 0, one expert does all, to 1."""
        return -sum(share * math.log(share) for share in self.shares if share) / math.log(max(2, len(self.tokens)))

    def distance(self, other: ExpertLoad) -> float:
        """Total variation to another load: the share of tokens that would have to go elsewhere, 0 to 1."""
        return sum(abs(a - b) for a, b in zip(self.shares, other.shares, strict=True)) / 2


def expert_load(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, ExpertLoad]:
    """Counts the tokens that each expert gets; padding does not count.

    Args:
        model: A stock or fused model.
        batches: Batches of tokens, as `hf_mlp_fusion.data.objectives.make_batches` gives them.

    Returns:
        The load by name of the sparse layer; empty where a model has none.

    Raises:
        DataError: There are no batches.
    """
    experts = [ffn for ffn in find_ffns(model) if ffn.expert is not None]
    names = list(dict.fromkeys(ffn.name.rsplit(".", 2)[0] for ffn in experts))
    if not names:
        return {}
    if experts[0].spec.stacked:
        return _of_stacks(model, experts, batches)
    counts: list[Tensor] = []
    with evaluating(model):
        for batch in fitting_pieces(model, unpadded(as_batches(model, batches)), logits=True):
            outputs = model(**inputs_of(on_device(batch, model)), output_router_logits=True)
            counts.append(torch.stack([_by_expert(logits, model) for _, logits in router_logits(outputs)]))
    if not counts:
        raise DataError("there are no batches to count tokens of: give more texts")
    totals = torch.stack(counts).sum(0).tolist()
    return {name: ExpertLoad(tuple(tokens), sum(over)) for name, (tokens, over) in zip(names, totals, strict=True)}


def _of_stacks(model: PreTrainedModel, experts: Sequence[FFN], batches: Iterable[Batch]) -> dict[str, ExpertLoad]:
    """The load of experts in stacks, which are told their tokens and drop none; a token goes to several of them."""
    tokens: dict[str, list[int]] = {}
    hooks: list[RemovableHandle] = []
    for ffn in experts:
        counts = tokens.setdefault(ffn.name.rsplit(".", 2)[0], [])
        counts.append(0)
        add = functools.partial(_count, counts, len(counts) - 1)
        hooks += ffn.watch(add)
    ran = False
    try:
        with evaluating(model):
            for batch in fitting_pieces(model, unpadded(as_batches(model, batches)), logits=True):
                model(**inputs_of(on_device(batch, model)))
                ran = True
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise DataError("there are no batches to count tokens of: give more texts")
    return {name: ExpertLoad(tuple(counts), 0) for name, counts in tokens.items()}


def _count(counts: list[int], expert: int, tokens: Tensor) -> None:
    counts[expert] += len(tokens)


def _by_expert(logits: Tensor, model: PreTrainedModel) -> Tensor:
    """Tokens that one layer sends to each expert, and how many of them are too many: `[2, experts]`."""
    rows = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(-2)  # capacity counts by row
    return torch.stack([rows.sum(0), (rows - model.config.expert_capacity).clamp(min=0).sum(0)]).cpu()
