"""One layer of a model at a time, run inside the stock forward: the others hand on what was computed before."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import Batch, inputs_of
from ..errors import DataError

__all__ = ["LayerChain", "NotAChainError"]

LayerOutput = dict[str, Tensor]
"""What a layer returned: its tensors by their place in a tuple, or alone, as `"tensor"`."""


class NotAChainError(Exception):
    """A model whose layers need more than what the layer before them returned."""


class _FinishedError(Exception):
    """Ends a forward once the layer of interest has run."""


class LayerChain:
    """Runs layers of a model one by one, each on what the one before it returned, kept by the caller.

    The stock forward runs each time, from the embeddings to that layer, and so gives it its masks, positions and all
    else as it always does. The layers before do not run: the last of them returns what it returned when it did, those
    before that NaN, which shows if they matter after all.

    Args:
        model: The model. Only what is not a layer, and the layer that runs, need be in memory.
        layers: Its layers, in order, by name.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[str]) -> None:
        self.model = model
        self._layers: list[nn.Module] = [model.get_submodule(name) for name in layers]
        self._number = 0
        self._before: LayerOutput = {}
        self._after: Any = None
        self._unused = torch.nan

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """Lets layers hand on what they are told, while it is open."""
        try:
            for number, layer in enumerate(self._layers):
                # An attribute of the instance, as accelerate's hooks do it: the class stays as it is.
                layer.forward = functools.partial(self._forward, number, layer.forward)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    def run(self, number: int, batch: Batch, before: LayerOutput) -> LayerOutput:
        """Runs a layer.

        Args:
            number: Its number.
            batch: A batch of model inputs.
            before: What the layer before it returned on the batch; nothing for the first.

        Raises:
            NotAChainError: The layer returns what is no tensor, or has looked at what an earlier layer returned.
            DataError: As hooks have raised it.
        """
        self._number, self._before = number, before
        try:
            after = self._run(batch, torch.nan)
            if number < 2 or not _has_nan(after) or _has_nan(before) or _has_nan(self._run(batch, 0.0)):
                return after
        except DataError:  # NaN was seen on the way
            if number < 2:
                raise
            self._run(batch, 0.0)  # raises it again, if no layer before the last one has to do with it
        raise NotAChainError(f"layer {number} needs more than what the one before it returns")

    def _run(self, batch: Batch, unused: float) -> LayerOutput:
        self._unused, self._after = unused, None
        with contextlib.suppress(_FinishedError):
            self.model(**inputs_of(batch))
        if self._after is None:
            raise NotAChainError(f"layer {self._number} did not run")
        after, self._after = _taken_apart(self._after), None
        return after

    def hand_on(self, before: LayerOutput) -> None:
        """Lets all layers stand in, for forwards through what comes behind them.

        Args:
            before: What the last layer returned on the batch that will be run, or whose first rows will.
        """
        self._number, self._before = len(self._layers), before

    def _forward(self, number: int, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if number == self._number:
            self._after = stock(*args, **kwargs)
            raise _FinishedError
        rows = len(args[0] if args else next(iter(kwargs.values())))
        before = {name: tensor[:rows] if tensor.dim() else tensor for name, tensor in self._before.items()}
        if number < self._number - 1:
            before = {
                name: torch.full_like(tensor, self._unused) if tensor.is_floating_point() else tensor
                for name, tensor in before.items()
            }
        return _together(before)


def _taken_apart(output: Any) -> LayerOutput:
    """What a layer returned, as tensors that can be kept."""
    if isinstance(output, Tensor):
        return {"tensor": output}
    if not isinstance(output, tuple) or not all(item is None or isinstance(item, Tensor) for item in output):
        raise NotAChainError(f"a layer returns {type(output).__name__}")
    found = {str(number): item for number, item in enumerate(output) if item is not None}
    return found | {"size": torch.tensor(len(output))}


def _has_nan(output: LayerOutput) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in output.values())


def _together(kept: LayerOutput) -> Any:
    if "tensor" in kept:
        return kept["tensor"]
    return tuple(kept.get(str(number)) for number in range(int(kept["size"])))
