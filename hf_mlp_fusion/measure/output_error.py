"""Output error: how far the fused FFNs' outputs are from the originals'."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import (
    Batch,
    as_batches,
    counted_tokens,
    cut_padding,
    evaluating,
    final_hidden_state,
    fitting_pieces,
    on_device,
    run_on,
    token_mask,
)
from ..modeling.ffn import FFN
from .pairs import reduced_pairs

__all__ = ["OutputError", "output_error"]


@dataclass(frozen=True)
class OutputError:
    """Output errors, each ‖ŷ - y‖_F / ‖y‖_F over all tokens.

    Args:
        ffns: Of each fused FFN on the inputs that it has in the original model; NaN for an expert that saw no token.
        hidden_state: Of the last hidden state, the fused model running by itself.
    """

    ffns: dict[str, float]
    hidden_state: float

    @property
    def mean(self) -> float:
        """Mean over the FFNs that saw tokens; NaN where there is none."""
        values = [value for value in self.ffns.values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def output_error(original: PreTrainedModel, fused: PreTrainedModel, batches: Iterable[Batch]) -> OutputError:
    """Measures the output error of each fused FFN, and of the final hidden state.

    Sums are taken token by token as the batches stream through, cut where they are large, so memory grows with neither
    their number nor their size. Padding does not count; experts are measured on the tokens that the original routes to
    them.

    Args:
        original: The model before fusion.
        fused: The same after fusion (or after a baseline).
        batches: Batches of tokens, as `hf_mlp_fusion.data.objectives.make_batches` gives them.
    """
    pairs = reduced_pairs(original, fused)
    sums = {before.name: _Sums() for before, _ in pairs}
    final = _Sums()
    watch = _Watch()
    hooks = [hook for before, after in pairs for hook in watch.hooks(before, after, sums[before.name])]
    batches = cut_padding([before for before, _ in pairs], as_batches(original, batches))
    try:
        with evaluating(original, fused):
            for number, batch in enumerate(fitting_pieces(original, batches), 1):
                watch.batch = on_device(batch, original)
                with run_on(f"piece {number} of the batches"):
                    wanted = final_hidden_state(original, watch.batch)
                    found = final_hidden_state(fused, on_device(batch, fused))
                final.add(wanted, found, token_mask(watch.batch, decoder="decoder_input_ids" in batch))
    finally:
        for hook in hooks:
            hook.remove()
    return OutputError({name: value.ratio for name, value in sums.items()}, final.ratio)


@dataclass
class _Sums:
    """Squared norms of the difference and of the original, summed over tokens."""

    difference: float = 0.0
    original: float = 0.0

    def add(self, wanted: Tensor, found: Tensor, mask: Tensor | None) -> None:
        """Adds tokens, `[..., d]`; a mask that speaks of them, `[batch, tokens]`, picks among them."""
        found = found.to(wanted.device)
        if mask is not None and mask.numel() == wanted.shape[:-1].numel():
            wanted, found = (states[mask.reshape(states.shape[:-1])] for states in (wanted, found))
        self.difference += (found.double() - wanted.double()).square().sum().item()
        self.original += wanted.double().square().sum().item()

    @property
    def ratio(self) -> float:
        """The relative norm so far; NaN before any token."""
        return math.sqrt(self.difference / self.original) if self.original else math.nan


@dataclass
class _Watch:
    """Hooks that feed each original FFN's input to its fused counterpart as soon as its output is there."""

    batch: Batch = field(default_factory=dict)

    def hooks(self, before: FFN, after: FFN, sums: _Sums) -> Iterable[torch.utils.hooks.RemovableHandle]:
        """Watches one pair of FFNs."""
        inputs: list[Tensor] = []

        def compare(_: Tensor, output: Tensor) -> None:
            device = next(after.host.parameters()).device
            mask = counted_tokens(before, self.batch, output)
            sums.add(output, after.outputs(inputs.pop().to(device)), mask)

        yield from before.watch(inputs.append, compare)
