"""A rival of fewer units in every expert: experts that are merged. Used by `experts_quality.py`.

It keeps the same share of the parameters of a stack as fusion to that share of the units does. The package does not
have it, for no stock config holds a router that knows of groups.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mlp_fusion.data import Batch, evaluating, inputs_of, on_device
from hf_mlp_fusion.modeling.ffn import FFN
from hf_mlp_fusion.modeling.find import by_entry, find_ffns

__all__ = ["merge_experts"]


def merge_experts(model: PreTrainedModel, batches: Sequence[Batch], experts: int) -> PreTrainedModel:
    """Merges experts of like mean outputs, weighted by how often they are chosen (HC-SMoE, arXiv 2410.08589).

    Groups come from hierarchical clustering with average linkage. The router keeps all its rows: a token that
    chooses an expert gets the group's, twice if it chooses two of one group.

    Args:
        model: A stock model with stacks of experts. It is untouched.
        batches: Batches of tokens without padding.
        experts: Groups in each stack.
    """
    stacks = _stacks(model)
    means: list[Tensor] = [torch.zeros(len(stack), stack[0].output_size, dtype=torch.float64) for stack in stacks]
    chosen = [torch.zeros(len(stack), dtype=torch.float64) for stack in stacks]
    hooks = []
    for stack, mean, count in zip(stacks, means, chosen, strict=True):

        def see(_: nn.Module, args: tuple[Any, ...], own: Any = stack, m: Any = mean, c: Any = count) -> None:
            for ffn in own:  # all tokens, whoever they are routed to
                m[ffn.number] += ffn.outputs(args[0]).double().sum(0).cpu()
            c += torch.bincount(args[1].flatten().cpu(), minlength=len(own))

        hooks.append(stack[0].host.register_forward_pre_hook(see))
    with evaluating(model):
        for batch in batches:
            model(**inputs_of(on_device(batch, model)))
    for hook in hooks:
        hook.remove()
    smaller = copy.deepcopy(model)
    for stack, mean, count in zip(_stacks(smaller), means, chosen, strict=True):
        groups = fcluster(linkage(mean.numpy(), "average"), experts, "maxclust") - 1
        host = stack[0].host
        shares = count.clamp(min=1.0)
        for name, parameter in list(host.named_parameters()):
            merged = [
                _mean(parameter.detach(), shares, np.flatnonzero(groups == group)) for group in range(groups.max() + 1)
            ]
            setattr(host, name, nn.Parameter(torch.stack(merged)))
        host.num_experts = int(groups.max()) + 1  # type: ignore[assignment]
        _router(smaller, stack[0]).register_forward_hook(_Redirect(groups))
    return smaller


class _Redirect:
    """Sends what a router sends to an expert to the expert's group."""

    def __init__(self, groups: np.ndarray) -> None:
        self.groups = torch.from_numpy(groups).long()

    def __call__(self, router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        logits, scores, index = output
        return logits, scores, self.groups.to(index.device)[index]


def _mean(parameter: Tensor, weights: Tensor, members: np.ndarray) -> Tensor:
    own = weights[torch.from_numpy(members)].to(parameter.device)
    rows = parameter[torch.from_numpy(members).to(parameter.device)].double()
    return ((own / own.sum()).view(-1, *[1] * (rows.dim() - 1)) * rows).sum(0).to(parameter.dtype)


def _stacks(model: PreTrainedModel) -> list[list[FFN]]:
    return by_entry(ffn for ffn in find_ffns(model) if ffn.spec.stacked)


def _router(model: PreTrainedModel, ffn: FFN) -> nn.Module:
    block = model.get_submodule(ffn.block)
    return block.gate if hasattr(block, "gate") else block.router  # type: ignore[return-value]
