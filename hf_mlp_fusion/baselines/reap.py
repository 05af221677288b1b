"""Whole experts dropped by router weight and size of output: REAP (arXiv 2510.13999), without fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..data import Batch, as_batches, evaluating, fitting_pieces, inputs_of, on_device, unpadded
from ..errors import FusionConfigError, UnsupportedModelError
from ..fusion import calibration_batches, plan_fusion
from ..modeling.building import empty_model, rebuild
from ..modeling.ffn import FFN
from ..modeling.find import by_entry, find_ffns
from ..recipe import FusionConfig

__all__ = ["drop_experts"]

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts."""


def drop_experts(model: PreTrainedModel, config: FusionConfig, calibration: Any) -> Any:
    """Keeps as large a share of the experts as a recipe keeps of their units.

    Those of each layer stay whose outputs, weighted by the router, are largest on average over the tokens that are
    sent to them. The router loses the rows of the others, and chooses among those that are left.

    Args:
        model: A stock model with its experts in 3-D parameters. It is untouched.
        config: The share, as a width; it must be the same in all layers, for a stock config has one number.
        calibration: Calibration data as `fuse_model` takes them.

    Returns:
        A model of the stock class with fewer experts, in the dtype, device and mode of `model`.

    Raises:
        FusionConfigError: The recipe asks for what fewer experts cannot be, or there are no data.
        UnsupportedModelError: The model has no such experts, or a router that cannot choose among fewer.
        DataError: The calibration data cannot be read.
    """
    stacks = _stacks(model)
    if not stacks:
        raise UnsupportedModelError(
            f"reap drops experts that are kept as 3-D parameters, and {type(model).__name__} has none"
        )
    kept = _kept(model, config, stacks)
    smaller_config = _with_experts(model.config, len(stacks[0]), kept)
    if calibration is None:
        raise FusionConfigError("this method needs calibration data: pass calibration=")
    scores = _scores(model, stacks, calibration_batches(model, calibration))
    chosen = {
        f"{stack[0].block}.": score.topk(kept).indices.sort().values
        for stack, score in zip(stacks, scores, strict=True)
    }
    wanted = {name: tensor.shape for name, tensor in empty_model(type(model), smaller_config).state_dict().items()}
    state = {name: _cut(name, tensor, wanted, chosen) for name, tensor in model.state_dict().items()}
    return rebuild(model, type(model), smaller_config, state)


def _stacks(model: PreTrainedModel) -> list[list[FFN]]:
    return by_entry(ffn for ffn in find_ffns(model) if ffn.spec.stacked)


def _kept(model: PreTrainedModel, config: FusionConfig, stacks: Sequence[Sequence[FFN]]) -> int:
    """The experts to keep in each layer."""
    widths = {ffn.name: width for ffn, width in plan_fusion(model, config).widths}
    experts = {ffn.name for stack in stacks for ffn in stack}
    if other := next((name for name in widths if name not in experts), None):
        raise FusionConfigError(f"reap drops whole experts, and the recipe names {other}: write targets='experts'")
    found = {round(len(stack) * widths.get(stack[0].name, stack[0].width) / stack[0].width) for stack in stacks}
    if len(found) > 1:
        raise FusionConfigError(
            "reap keeps the same number of experts in every layer, for a config has one number: write one share for "
            f"all layers, not what makes {', '.join(map(str, sorted(found)))} experts"
        )
    return max(1, found.pop())


def _with_experts(config: PreTrainedConfig, experts: int, kept: int) -> PreTrainedConfig:
    """A config of fewer experts."""
    if (getattr(config, "n_group", None) or 1) > 1:
        raise UnsupportedModelError(
            f"the routers of {config.model_type} choose among groups of experts (n_group={config.n_group}), which "
            "would not be of one size: reap cannot drop experts here"
        )
    fields = [name for name in _COUNTS if name in config.to_dict() and getattr(config, name) == experts]
    if not fields:
        raise UnsupportedModelError(f"the config of {config.model_type} does not say that there are {experts} experts")
    smaller = copy.deepcopy(config)
    for name in fields:
        setattr(smaller, name, kept)
    smaller.num_experts_per_tok = min(config.num_experts_per_tok, kept)
    return smaller


def _scores(model: PreTrainedModel, stacks: Sequence[Sequence[FFN]], batches: Sequence[Batch]) -> list[Tensor]:
    """The mean of router weight x norm of output of each expert, over the tokens that are sent to it."""
    means = [[_Mean() for _ in stack] for stack in stacks]
    hooks: list[Any] = []
    try:
        for stack, own in zip(stacks, means, strict=True):
            for ffn, mean in zip(stack, own, strict=True):
                hooks += ffn.watch(outputs=mean.add, gates=mean.weigh)
        with evaluating(model):
            for batch in fitting_pieces(model, unpadded(as_batches(model, batches)), logits=True):
                model(**inputs_of(on_device(batch, model)))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.tensor([mean.total / max(1, mean.count) for mean in own], dtype=torch.float64) for own in means]


class _Mean:
    """What is summed up of an expert."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def weigh(self, gates: Tensor) -> None:
        """Takes what the router multiplies outputs by, just before the outputs."""
        self.gates = gates.double()

    def add(self, _: Tensor, outputs: Tensor) -> None:
        """Takes the outputs."""
        self.total += float((self.gates * outputs.double().norm(dim=-1)).sum())
        self.count += len(outputs)


def _cut(name: str, tensor: Tensor, wanted: dict[str, torch.Size], chosen: dict[str, Tensor]) -> Tensor:
    """What is left of a tensor: the experts that stay, where it has one part an expert."""
    changed = [dim for dim, (own, size) in enumerate(zip(tensor.shape, wanted[name], strict=True)) if own != size]
    if not changed:
        return tensor.clone()
    kept = next((kept for block, kept in chosen.items() if name.startswith(block)), None)
    if kept is None or len(changed) > 1 or wanted[name][changed[0]] != len(kept):
        raise UnsupportedModelError(f"reap does not know what {name} has of each expert")
    return tensor.index_select(changed[0], kept.to(tensor.device))
