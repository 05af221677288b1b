"""The routers of mixture-of-experts models: frozen or trained, and the losses that keep them balanced."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import Batch, router_logits, token_mask
from ..errors import UnsupportedModelError
from ..families import family_of

__all__ = ["RouterLosses", "freeze_routers", "router_losses"]


def freeze_routers(model: PreTrainedModel, *, frozen: bool = True) -> list[str]:
    """Freezes the routers, as the paper does when it fine-tunes fused Switch Transformers, or lets them train again.

    Args:
        model: A stock or fused mixture-of-experts model, or one that PEFT has wrapped.
        frozen: False to let them train, as they do in a model that was just loaded.

    Returns:
        Names of the routers' parameters.

    Raises:
        UnsupportedModelError: The model has no routers, or they shall train in a model that PEFT has wrapped.
    """
    pattern = family_of(getattr(model, "config", None)).router
    routers: list[tuple[str, nn.Parameter]] = [
        (name, parameter) for name, parameter in model.named_parameters() if pattern and re.fullmatch(pattern, name)
    ]
    if not routers:
        raise UnsupportedModelError(f"{type(model).__name__} has no routers to freeze")
    if not frozen and hasattr(model, "peft_config"):
        raise UnsupportedModelError(
            "an adapter would not be saved with routers trained beside it: name them in the adapter's config instead, "
            "for Switch Transformers modules_to_save=['classifier']"
        )
    for _, parameter in routers:
        parameter.requires_grad_(not frozen)
    return [name for name, _ in routers]


@dataclass(frozen=True)
class RouterLosses:
    """Losses of the routers of a mixture of experts, each summed over the sparse layers.

    Args:
        balance: E Σ_i f_i P_i of E experts, f_i the share of tokens whose likeliest expert is i (of top-k routers,
            the share of i among the k likeliest of all tokens) and P_i the mean probability of i (Switch
            Transformers, arXiv 2101.03961, eq. 4 to 6): from 1, balance, to E.
        z: Mean squared logsumexp of the logits (ST-MoE, arXiv 2202.08906, eq. 5).
    """

    balance: Tensor
    z: Tensor


def router_losses(outputs: Any, batch: Batch, *, top_k: int = 1) -> RouterLosses:
    """Computes the routers' losses of a forward; padding does not count.

    transformers' own, which it adds to `loss` when a model is called with `output_router_logits=True`, take all layers
    of a stack for one: two layers that collapse to different experts look balanced. Switch them off where these are
    used: `from_pretrained(..., router_aux_loss_coef=0.0, router_z_loss_coef=0.0)`.

    Args:
        outputs: What a stock or fused mixture of experts returned with `output_router_logits=True`.
        batch: What it was called with. Where there is no `decoder_attention_mask`, labels of -100 tell padding.
        top_k: Experts that a token goes to, `num_experts_per_tok` of the config; 1 in Switch Transformers.

    Raises:
        DataError: There are no router logits in the outputs.

    Example:
        >>> class RouterTrainer(Seq2SeqTrainer):
        ...     loss_is_scaled_for_ga = False  # Trainer then divides it by the number of accumulated batches
        ...
        ...     def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ...         outputs = model(**inputs, output_router_logits=True)
        ...         losses = router_losses(outputs, inputs)
        ...         loss = outputs.loss + 0.01 * losses.balance + 0.001 * losses.z
        ...         return (loss, outputs) if return_outputs else loss
    """
    if "labels" in batch and "decoder_attention_mask" not in batch:
        batch = {**batch, "decoder_attention_mask": batch["labels"] != -100}
    balance, z = [], []
    for decoder, layer in router_logits(outputs):
        mask = token_mask(batch, decoder=decoder)
        # Stacks of experts give the tokens of all rows in one heap.
        logits = (layer.flatten(0, -2) if mask is None else layer.reshape(*mask.shape, -1)[mask]).float()
        experts = logits.shape[-1]
        chosen = nn.functional.one_hot(logits.topk(top_k).indices, experts).float().mean((0, 1))
        balance.append(experts * (chosen * logits.softmax(-1).mean(0)).sum())
        z.append(logits.logsumexp(-1).square().mean())
    return RouterLosses(torch.stack(balance).sum(), torch.stack(z).sum())
