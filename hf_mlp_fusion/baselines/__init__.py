"""The rivals that the paper compares with, and newer ones, behind one interface.

May import `fusion`, `modeling`, `data` and what is below. A method is one small file and one line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..data import plain_context
from ..errors import FusionConfigError
from ..fusion import SAMPLED, check_reducible, fuse_model, reduce_ffns
from ..recipe import FusionConfig, check_recipe
from .cluster import CLUSTER
from .compact import COMPACT
from .flap import FLAP
from .layer_drop import drop_layers
from .mmd import MMD
from .nirvana import NIRVANA
from .ntk_sap import NTK_SAP
from .prune import PRUNE
from .reap import drop_experts
from .scored import check_data
from .sdmprune import SDMPRUNE
from .sketch import SKETCH
from .svd import SVD
from .wanda import WANDA

__all__ = ["METHODS", "reduce_model"]


Reduce = Callable[[PreTrainedModel, FusionConfig, Any], Any]
"""Makes a model smaller: takes the model, the recipe, and calibration data, which a method may have no use for."""


def _data_free(reduce: Callable[[PreTrainedModel, FusionConfig], Any]) -> Reduce:
    return lambda model, config, calibration: reduce(model, config)


def _fusion(**fields: str) -> Reduce:
    """Fusion with some fields of the recipe fixed, without data."""
    return lambda model, config, calibration: fuse_model(model, replace(config, **fields))  # type: ignore[arg-type]


def _calibrated(data: str | None = None, **fields: Any) -> Reduce:
    def reduce(model: PreTrainedModel, config: FusionConfig, calibration: Any) -> Any:
        check_data(data or calibration)
        return fuse_model(model, replace(config, **fields), calibration=data or calibration)

    return reduce


def _searched(model: PreTrainedModel, config: FusionConfig, calibration: Any) -> Any:
    if not isinstance(config.width, float):
        raise FusionConfigError("fusion_auto searches for widths under a share of all units: write a share as width")
    return _calibrated()(model, replace(config, width=f"auto:{config.width}"), calibration)


METHODS: dict[str, Reduce] = {
    "fusion": _fusion(),
    "fusion_kmeans": _fusion(clustering="kmeans"),
    "fusion_bias": _calibrated(selection="clusters", refit="bias"),
    "fusion_output": _calibrated(selection="clusters", refit="output"),
    "fusion_calibrated": _calibrated(),
    "fusion_matched": _calibrated(power=1.0, ntk="match"),
    "fusion_calibrated_raw": _calibrated(power=1.0, ntk="none"),
    "fusion_auto": _searched,
    "fusion_sampled": _calibrated(SAMPLED),
    "cluster": _data_free(functools.partial(reduce_ffns, method=CLUSTER)),
    "svd": _data_free(functools.partial(reduce_ffns, method=SVD)),
    "sketch": _data_free(functools.partial(reduce_ffns, method=SKETCH)),
    "mmd": _data_free(functools.partial(reduce_ffns, method=MMD)),
    "prune": _data_free(functools.partial(reduce_ffns, method=PRUNE)),
    "ntk_sap": _data_free(functools.partial(reduce_ffns, method=NTK_SAP)),
    "layer_drop": _data_free(drop_layers),
    "reap": drop_experts,
    "flap": FLAP,
    "wanda": WANDA,
    "compact": COMPACT,
    "sdmprune": SDMPRUNE,
    "nirvana": NIRVANA,
}
"""Methods by name. `fusion` clusters as the recipe says and `fusion_kmeans` as the paper does, both without data.
`fusion_calibrated` is the default with calibration data, `fusion_auto` with widths searched for, `fusion_matched` with
P as in the paper and its kernels matched (`fusion_calibrated_raw`: not matched), `fusion_sampled` the default on what
the model writes itself; `fusion_bias` and `fusion_output` refit clusters. The others are rivals: the paper's, without
data; `flap`, `wanda`, `compact`, `sdmprune` and `nirvana`, newer ones that score
units on the rows that `fusion_calibrated` uses; and `reap`, which drops whole experts of mixtures."""


@plain_context()
def reduce_model(model: PreTrainedModel, config: FusionConfig, method: str = "fusion", calibration: Any = None) -> Any:
    """Makes a model smaller by fusion or by one of its rivals, all at once and without fine-tuning.

    Args:
        model: A stock model of a supported family. It is untouched.
        config: Which FFNs, and how wide they become; rivals make them as large in parameters.
        method: A key of `METHODS`.
        calibration: Calibration data as `fuse_model` takes them, for the methods that need them.

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
    check_reducible(model)
    check_recipe(config)
    return METHODS[method](model, config, calibration)
