"""What passes through FFNs while batches run through a model: their moments, and tokens that are kept as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..data import Batch, Processes, counted_tokens
from ..errors import DataError
from ..modeling.ffn import FFN
from ..tensors import FFNWeights, Moments, MomentSums

__all__ = ["KeptTokens", "Running", "TokenSample", "watch_moments"]


@dataclass
class Running:
    """The batch that runs through a model."""

    batch: Batch = field(default_factory=dict)
    name: str = ""

    def numbered(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Hands batches on, and counts them."""
        for number, batch in enumerate(batches, 1):
            self.name = f"calibration batch {number}"
            yield batch


@dataclass(frozen=True)
class TokenSample:
    """Tokens that an FFN saw: of other units than its own, moments can be taken on them without the model.

    Args:
        inputs: What its up projection saw, `[n, d_in]`.
        outputs: What its down projection gave, `[n, d_out]`.
        gates: What a router multiplied that by, `[n]`, where it is an expert of a stack.
    """

    inputs: Tensor
    outputs: Tensor
    gates: Tensor | None = None

    def moments(self, ffn: FFN, units: FFNWeights) -> Moments:
        """The moments of hidden units on these tokens; the output is that of the FFN itself.

        Args:
            ffn: The FFN, not fused yet.
            units: The units.
        """
        device = units.down.device
        sums = MomentSums(centred=ffn.read().down_bias is not None)
        with torch.no_grad():
            hidden = ffn.hidden(self.inputs.to(device), units)
        sums.add(hidden, self.outputs.to(device), None if self.gates is None else self.gates.to(device))
        return sums.moments()


class KeptTokens:
    """Tokens of an FFN, kept until there are too many.

    Args:
        most: How many; with more, none are kept any more. None for no end.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.count = 0
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, inputs: Tensor, outputs: Tensor, gates: Tensor | None) -> None:
        """Adds tokens, as `TokenSample` has them."""
        self.count += len(inputs)
        if self.most is not None and self.count > self.most:
            self._kept = []
        else:
            # Copies: a slice would keep all that it is a part of.
            self._kept.append((inputs.cpu().clone(), outputs.cpu().clone(), None if gates is None else gates.cpu()))

    def join(self, processes: Processes) -> None:
        """Takes the tokens of all processes together."""
        self.count = sum(processes.joined([self.count]))
        if self.most is not None and self.count > self.most:
            self._kept = []
        else:
            self._kept = processes.joined(self._kept)

    def sample(self) -> TokenSample | None:
        """What was kept; None where that is nothing."""
        if not self._kept:
            return None
        inputs, outputs, gates = zip(*self._kept, strict=True)
        weights = None if gates[0] is None else torch.cat([item for item in gates if item is not None])
        return TokenSample(torch.cat(inputs), torch.cat(outputs), weights)


def watch_moments(
    ffn: FFN,
    sums: MomentSums | None,
    running: Running,
    units: FFNWeights | None = None,
    kept: KeptTokens | None = None,
) -> Iterator[RemovableHandle]:
    """Hooks that add what passes through an FFN to its moments. Padding does not count.

    Args:
        ffn: The FFN, not fused yet.
        sums: Its moments so far; None where only tokens are kept.
        running: What runs.
        units: Other hidden units to take the moments of; the output stays that of the FFN itself.
        kept: Tokens to keep besides.

    Yields:
        The handles of the hooks.
    """
    inputs: list[Tensor] = []
    gates: list[Tensor] = []

    def add(hidden: Tensor, output: Tensor) -> None:
        seen = inputs.pop() if inputs else None
        if units is not None:
            assert seen is not None
            hidden = ffn.hidden(seen, units)
        mask = counted_tokens(ffn, running.batch, output)

        def counted(item: Tensor) -> Tensor:
            return item.flatten(0, -2) if mask is None else item[mask]

        hidden, output = counted(hidden), counted(output)
        if not (hidden.isfinite().all() and output.isfinite().all()):
            raise DataError(
                f"{ffn.name} computes NaN or infinity on {running.name}: look for NaN in that batch, or load the "
                "model in float32"
            )
        # An expert's error reaches the output times the gate. As a weight its square is no better, on few worse.
        weights = gates.pop() if gates else None
        if sums is not None:
            sums.add(hidden, output, weights)
        if kept is not None:
            assert seen is not None
            kept.add(counted(seen), output, weights)

    yield from ffn.watch(None if units is None and kept is None else inputs.append, add, gates.append)
