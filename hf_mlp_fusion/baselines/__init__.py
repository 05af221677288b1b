"""The rivals that the paper compares with, behind one interface. A method is one small file and one line here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..config import FusionConfig
from ..driver import reduce_ffns
from ..errors import FusionConfigError
from ..fuse import fuse_model
from .cluster import CLUSTER
from .layer_drop import drop_layers
from .mmd import MMD
from .ntk_sap import NTK_SAP
from .prune import PRUNE
from .sketch import SKETCH
from .svd import SVD

__all__ = ["METHODS", "reduce_model"]


def _kmeans_fusion(model: PreTrainedModel, config: FusionConfig) -> Any:
    return fuse_model(model, replace(config, clustering="kmeans"))


METHODS: dict[str, Callable[[PreTrainedModel, FusionConfig], Any]] = {
    "fusion": fuse_model,
    "fusion_kmeans": _kmeans_fusion,
    "cluster": functools.partial(reduce_ffns, method=CLUSTER),
    "svd": functools.partial(reduce_ffns, method=SVD),
    "sketch": functools.partial(reduce_ffns, method=SKETCH),
    "mmd": functools.partial(reduce_ffns, method=MMD),
    "prune": functools.partial(reduce_ffns, method=PRUNE),
    "ntk_sap": functools.partial(reduce_ffns, method=NTK_SAP),
    "layer_drop": drop_layers,
}
"""Methods by name. None needs data; `fusion` clusters as the recipe says, `fusion_kmeans` as the paper does."""


def reduce_model(model: PreTrainedModel, config: FusionConfig, method: str = "fusion") -> Any:
    """Makes a model smaller by fusion or by one of its rivals, all at once and without fine-tuning.

    Args:
        model: A stock model of a supported family. It is untouched.
        config: Which FFNs, and how wide they become; rivals make them as large in parameters.
        method: A key of `METHODS`.

    Returns:
        A model that runs, fine-tunes, saves, and loads again with the Auto classes.

    Raises:
        FusionConfigError: There is no such method, or it cannot do what is asked.
        UnsupportedModelError: The model is none that can be made smaller.

    Example:
        >>> from hf_mlp_fusion import FusionConfig
        >>> from hf_mlp_fusion.baselines import reduce_model
        >>> small = reduce_model(model, FusionConfig(layers="last:8"), "svd")  # doctest: +SKIP
    """
    if method not in METHODS:
        raise FusionConfigError(f"there is no method {method!r}; the methods are {', '.join(METHODS)}")
    return METHODS[method](model, config)
