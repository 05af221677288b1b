"""SGD on fused models: gradients that move a unit as far as each of the units that it stands for would have moved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..modeling.ffn import FFN
from ..modeling.find import by_entry, find_ffns
from ..tensors import FFNWeights

__all__ = ["scale_gradients_for_sgd"]


def scale_gradients_for_sgd(model: PreTrainedModel) -> contextlib.ExitStack:
    """Divides the gradients of each fused unit's weights by the number of units that it stands for.

    A unit that stands for n has n times the gradient of one of them, and its weights move the output n times as far.
    Adam's steps do not depend on the gradient's size, so the unit moves the output n times as far as one of the n
    would have: as far as all of them. An SGD step is the gradient, so the unit moves it n² times as far. A learning
    rate of 1/n for each unit mends that. Optimizers have one learning rate a tensor, and units are rows and columns
    of tensors, so their gradients are divided instead, which is the same for every optimizer that is linear in them:
    SGD with or without momentum and weight decay. Where the n units are identical, the fused model then stays the
    original's equal, step after step. Adam needs none of this, and takes no notice.

    Where P is a power p of the cluster sizes n, an SGD step of the output weights moves the output n^2p times as far
    as one of the n would, and their gradients are divided by n^(2p - 1).

    The numbers s1, s2 and s3 of an NTK calibration (`calibrate_ntk`) give Adam's kernels their size and would multiply
    SGD's by their squares, which are divided out too.

    The biases of down projections belong to no unit and keep their gradients. Gradients are scaled as they are
    computed, so accumulation, loss scaling and DDP see scaled ones. So does gradient clipping: the norm that it
    compares is smaller than the original's, whose n equal gradients count n times.

    Args:
        model: A fused model whose FFN weights train.

    Returns:
        What undoes it: use it in a `with`, or call its `close()`. Neither is needed where the model is only trained.

    Raises:
        UnsupportedModelError: The model has no fused FFN whose weights train.

    Example:
        >>> from hf_mlp_fusion.training import scale_gradients_for_sgd
        >>> with scale_gradients_for_sgd(fused):  # doctest: +SKIP
        ...     Trainer(fused, TrainingArguments("out", optim="sgd"), train_dataset=data).train()
    """
    undo = contextlib.ExitStack()
    hooked = 0
    for group in by_entry(ffn for ffn in find_ffns(model) if ffn.is_fused):
        for name, parameter in group[0].host.named_parameters():
            if parameter.requires_grad and name in _divisors(group[0]):
                hook = functools.partial(_divided, group, name)
                undo.callback(parameter.register_hook(hook).remove)
                hooked += 1
    if not hooked:
        raise UnsupportedModelError(f"{type(model).__name__} has no fused FFN whose weights train")
    return undo


def _divided(group: Sequence[FFN], name: str, gradient: Tensor) -> Tensor:
    """A gradient divided unit by unit; a group is one FFN, or the experts of a stack."""
    # Read anew each time: P moves with the model, and a checkpoint may have been loaded.
    return gradient / group[0].joined([_divisors(ffn)[name] for ffn in group]).to(gradient.dtype)


def _divisors(ffn: FFN) -> dict[str, Tensor]:
    """What the gradients of an FFN's parameters are divided by, as tensors that broadcast, by name below the host."""
    scaling = ffn.scaling
    assert scaling is not None
    sizes = scaling.cluster_sizes
    seen, value = (sizes * scale**2 for scale in (scaling.inner_scale, scaling.value_scale))
    outer = sizes ** (2 * scaling.power - 1) * scaling.outer_scale**2
    weights = ffn.read()
    if weights.gate is None:
        up, gate = seen, None
    else:
        up, gate = value, seen
    return ffn.tensors(
        FFNWeights(
            up[:, None],
            outer[None],
            None if weights.up_bias is None else up,
            None if gate is None else gate[:, None],
            None if weights.gate_bias is None else gate,
        )
    )
