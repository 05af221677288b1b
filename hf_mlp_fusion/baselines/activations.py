"""What hidden units compute on data, unit by unit: means and mean squares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..data import (
    Batch,
    Progress,
    counted_tokens,
    cut_padding,
    evaluating,
    final_hidden_state,
    fitting_pieces,
    on_device,
    row_count,
    run_on,
)
from ..modeling.ffn import FFN

__all__ = ["UnitSums", "unit_sums"]

Weigh = Callable[[FFN, Batch, Tensor], Tensor]
"""Takes an FFN, the batch that runs, and what its down projection sees, `[..., I]`; gives token weights, `[...]`."""


@dataclass
class UnitSums:
    """Sums over tokens of the activations of an FFN's units.

    Args:
        count: Tokens, or the sum of their weights.
        first: Sum of the activations, `[I]`, float64.
        second: Sum of their squares, `[I]`, float64.
    """

    count: float = 0.0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, hidden: Tensor, weights: Tensor) -> None:
        """Adds tokens.

        Args:
            hidden: Activations, `[n, I]`.
            weights: The tokens' weights, `[n]`.
        """
        hidden, weights = hidden.double(), weights.double()
        self.count += float(weights.sum())
        self.first = self.first + weights @ hidden
        self.second = self.second + weights @ hidden.square()

    @property
    def mean(self) -> Tensor:
        """Mean activation of each unit, `[I]`."""
        return self.first / self.count  # type: ignore[return-value]

    @property
    def mean_square(self) -> Tensor:
        """Mean squared activation of each unit, `[I]`."""
        return self.second / self.count  # type: ignore[return-value]


def unit_sums(
    model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch], weigh: Weigh | None = None
) -> dict[str, UnitSums]:
    """Runs a model and sums up what the units of its FFNs compute. Padding does not count.

    Args:
        model: The model.
        ffns: The FFNs.
        batches: Batches of tokens.
        weigh: Weights of tokens; 1 each if not given.

    Returns:
        The sums by FFN name; none of an expert that saw no token, or none of any weight.
    """
    sums = {ffn.name: UnitSums() for ffn in ffns}
    running: Batch = {}

    def add(ffn: FFN, hidden: Tensor, output: Tensor) -> None:
        weights = hidden.new_ones(hidden.shape[:-1]) if weigh is None else weigh(ffn, running, hidden)
        mask = counted_tokens(ffn, running, output)
        hidden, weights = (item if mask is None else item[mask] for item in (hidden, weights))
        sums[ffn.name].add(hidden.flatten(0, -2), weights.flatten())

    hooks = [hook for ffn in ffns for hook in ffn.watch(outputs=functools.partial(add, ffn))]
    try:
        with evaluating(model), Progress(sum(map(row_count, batches)), "activations") as progress:
            for number, batch in enumerate(fitting_pieces(model, cut_padding(ffns, batches)), 1):
                running = on_device(batch, model)
                with run_on(f"piece {number} of the calibration batches"):
                    final_hidden_state(model, running)
                progress.update(row_count(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: item for name, item in sums.items() if item.count}
