"""Methods that reduce each FFN by its weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from ..fusion import LayerReducer, Method, ReducedFFN
from ..modeling.ffn import FFN
from ..modeling.forms import ReducedWeights
from ..recipe import FusionConfig
from ..tensors import FFNWeights

__all__ = ["each_ffn"]


def each_ffn(name: str, form: str, reduce: Callable[[FFNWeights, int, FusionConfig], ReducedWeights]) -> Method:
    """A method from a function of one FFN's weights.

    Args:
        name: Its name.
        form: The form that it makes.
        reduce: Takes the weights, the units to keep and the recipe.
    """

    def prepare(model: PreTrainedModel, todo: Sequence[tuple[FFN, int]], config: FusionConfig) -> LayerReducer:
        def reduce_layer(group: Sequence[tuple[FFN, int]]) -> Mapping[str, ReducedFFN[ReducedWeights]]:
            return {ffn.name: ReducedFFN(reduce(ffn.read(), width, config), None, name) for ffn, width in group}

        return reduce_layer

    return Method(name, form, prepare)
