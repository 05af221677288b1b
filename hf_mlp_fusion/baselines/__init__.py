"""The rivals that the paper compares with, behind one interface. A method is one small file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..config import FusionConfig
from ..data import Batch
from ..driver import Method, reduce_ffns
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


Calibration = Sequence[Batch] | None


def _fusion(model: PreTrainedModel, config: FusionConfig, calibration: Calibration) -> Any:
    return fuse_model(model, config)


def _kmeans_fusion(model: PreTrainedModel, config: FusionConfig, calibration: Calibration) -> Any:
    return fuse_model(model, replace(config, clustering="kmeans"))


def _calibrated_fusion(model: PreTrainedModel, config: FusionConfig, calibration: Calibration) -> Any:
    if calibration is None:
        raise FusionConfigError("fusion_calibrated needs calibration data: pass calibration=")
    return fuse_model(model, config, calibration=calibration)


def _rival(method: Method) -> Callable[[PreTrainedModel, FusionConfig, Calibration], Any]:
    return lambda model, config, calibration: reduce_ffns(model, config, method)


METHODS: dict[str, Callable[[PreTrainedModel, FusionConfig, Calibration], Any]] = {
    "fusion": _fusion,
    "fusion_kmeans": _kmeans_fusion,
    "fusion_calibrated": _calibrated_fusion,
    "cluster": _rival(CLUSTER),
    "svd": _rival(SVD),
    "sketch": _rival(SKETCH),
    "mmd": _rival(MMD),
    "prune": _rival(PRUNE),
    "ntk_sap": _rival(NTK_SAP),
    "layer_drop": lambda model, config, calibration: drop_layers(model, config),
}
"""Methods by name: `fusion` clusters as the recipe says, `fusion_kmeans` as the paper does; `fusion_calibrated` alone
uses data."""


def reduce_model(
    model: PreTrainedModel, config: FusionConfig, method: str = "fusion", *, calibration: Calibration = None
) -> Any:
    """Makes a model smaller by fusion or by one of its rivals, all at once and without fine-tuning.

    Args:
        model: A stock model of a supported family. It is untouched.
        config: Which FFNs, and how wide they become; rivals make them as large in parameters.
        method: A key of `METHODS`.
        calibration: Batches for the method that uses data.

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
    return METHODS[method](model, config, calibration)
