"""Displacement: how far training moved what an FFN computes, parted into what W1 and what W2 account for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..data import Batch, counted_tokens, cut_padding, evaluating, final_hidden_state, on_device, run_on
from ..errors import UnsupportedModelError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..tensors import FFNWeights

__all__ = ["Displacement", "displacements", "ffn_inputs"]


@dataclass(frozen=True)
class Displacement:
    """How far an FFN's function was moved: root mean square over tokens of the change of its output.

    Args:
        inner: By W1 alone, the up projection and the gate: |y(W1 after, W2 before) - y(before)|.
        outer: By W2 alone, the down projection without its bias: |y(W1 before, W2 after) - y(before)|.
        curvature: How far the way is from a straight line: with y(+) after it and y(-) after its mirror image,
            |y(+) + y(-) - 2 y(before)| / |y(+) - y(-)|, biases of W2 left out. It is 0 for a model that moves as its
            tangent kernel says.
    """

    inner: float
    outer: float
    curvature: float


def ffn_inputs(model: PreTrainedModel, names: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """What FFNs see in a forward, `[tokens, d]`, padding left out.

    Args:
        model: The model.
        names: Names of FFNs.
        batch: What it is run on.

    Returns:
        The inputs by FFN; of an expert that sees no token, none.
    """
    ffns = [ffn for ffn in find_ffns(model) if ffn.name in set(names)]
    seen: dict[str, list[Tensor]] = {}
    running: Batch = {}

    def watch(ffn: FFN) -> list[RemovableHandle]:
        def add(inputs: Tensor) -> None:
            mask = counted_tokens(ffn, running, inputs)
            seen.setdefault(ffn.name, []).append(inputs.flatten(0, -2) if mask is None else inputs[mask])

        return list(ffn.watch(add))

    hooks = [hook for ffn in ffns for hook in watch(ffn)]
    try:
        with evaluating(model), run_on("the rows held out"):
            for piece in cut_padding(ffns, [batch]):
                running = on_device(piece, model)
                final_hidden_state(model, running)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(found) for name, found in seen.items() if sum(map(len, found))}


def displacements(
    before: PreTrainedModel, after: PreTrainedModel, inputs: dict[str, Tensor]
) -> dict[str, Displacement]:
    """Measures how far FFNs were moved.

    Args:
        before: The model.
        after: The same, trained. It is left with other weights: drop it.
        inputs: What the FFNs see, `[tokens, d]`, by name.

    Raises:
        UnsupportedModelError: An FFN is a product of thin matrices, of which none is W1.
    """
    found = {}
    trained = {ffn.name: ffn for ffn in find_ffns(after)}
    with evaluating(before, after):
        for ffn in find_ffns(before):
            if ffn.name not in inputs:
                continue
            if ffn.is_low_rank:
                raise UnsupportedModelError(f"{ffn.name} has thin factors: its displacement has no two parts to tell")
            seen, moved = inputs[ffn.name], trained[ffn.name]
            start, old, new = ffn.outputs(seen), _copied(ffn.read()), _copied(moved.read())

            def change(weights: FFNWeights, moved: FFN = moved, seen: Tensor = seen, start: Tensor = start) -> Tensor:
                for name, part in vars(moved.read()).items():  # views of the model's own weights
                    if part is not None:
                        part.copy_(getattr(weights, name))
                return (moved.outputs(seen) - start).double()

            forth = change(replace(new, down_bias=old.down_bias))
            back = change(replace(_mirrored(old, new), down_bias=old.down_bias))
            straight = float((forth - back).norm())
            root = math.sqrt(len(seen))
            found[ffn.name] = Displacement(
                float(change(replace(new, down=old.down, down_bias=old.down_bias)).norm()) / root,
                float(change(replace(old, down=new.down)).norm()) / root,
                float((forth + back).norm()) / straight if straight else 0.0,
            )
    return found


def _mirrored(old: FFNWeights, new: FFNWeights) -> FFNWeights:
    """The weights that lie as far from the old ones on the other side."""
    parts = vars(old)
    return replace(old, **{name: 2 * part - getattr(new, name) for name, part in parts.items() if part is not None})


def _copied(weights: FFNWeights) -> FFNWeights:
    """The weights, no longer views of a model's tensors."""
    return replace(weights, **{name: part.clone() for name, part in vars(weights).items() if part is not None})
