"""The one way from a stock model to a smaller one: the walk over its FFNs that fusion and its rivals share."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import Progress
from ..errors import FusionWarning, UnsupportedModelError
from ..families import family_of
from ..modeling.building import convert_config, rebuild
from ..modeling.classes import fused_class
from ..modeling.configs import config_class
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.forms import FORMS, ReducedWeights
from ..recipe import FFNReport, FFNWidth, FusionConfig, FusionSection
from .checks import check_finite
from .plan import plan_fusion
from .receipts import ReducedFFN, Size, ffn_report, ffn_width, receipt, source_of

__all__ = ["LayerReducer", "Method", "build_smaller", "reduce_ffns", "reduction_work"]

_SELECTION = 30  # operations of a selection and a refit: float64, and memory more than arithmetic

LayerReducer = Callable[[Sequence[tuple[FFN, int]]], Mapping[str, ReducedFFN[ReducedWeights]]]
"""Reduces the FFNs of one layer (one, or the experts of a mixture), each given with the units to keep; by name."""


@dataclass(frozen=True)
class Method:
    """A way to make FFNs smaller.

    Args:
        name: What the config section and tables call it.
        form: The form of FFN that it makes, a key of `FORMS`.
        prepare: Takes the model whose FFNs will be reduced one layer after another, all FFNs of the plan with their
            widths, and the recipe; looks at the whole and returns what reduces a layer.
    """

    name: str
    form: str
    prepare: Callable[[PreTrainedModel, Sequence[tuple[FFN, int]], FusionConfig], LayerReducer]


def reduce_ffns(model: PreTrainedModel, config: FusionConfig, method: Method, *, inplace: bool = False) -> Any:
    """Makes the FFNs of a model smaller.

    Args:
        model: A stock model that `check_reducible` accepts.
        config: Which FFNs, and how wide they become (a method of another form makes them as large as that).
        method: How.
        inplace: Take over the model's tensors instead of copying them, to save memory. `model` is left without weights
            and must not be used again, also where the method fails half-way.

    Returns:
        A model of the fused class with the dtype, device and mode of `model`, its receipt in `fusion_report`.

    Raises:
        FusionConfigError: The recipe cannot be carried out on this model, or a weight is not finite.
        UnsupportedModelError: The family is not supported, or the model is fused, wrapped, quantized or offloaded.

    Warns:
        FusionWarning: A width below the hidden size, or below a quarter of the FFN's own.
    """
    started = time.perf_counter()
    plan = plan_fusion(model, config)
    for message in plan.warnings:
        warnings.warn(message, FusionWarning, stacklevel=3)
    family = family_of(model.config)
    for ffn, _ in plan.widths:
        if method.form not in ffn.forms:
            raise UnsupportedModelError(
                f"{method.name} makes FFNs of the form {method.form!r}, which {ffn.name} cannot have: its gate and up "
                "projections are one matrix"
            )
        check_finite(ffn)
    before = Size.of(model)

    # A copy is reduced layer by layer, so that calibration sees the layers before as they will be.
    working = model if inplace else copy.deepcopy(model)
    own = {ffn.name: ffn for ffn in find_ffns(working)}
    todo = [(own[ffn.name], width) for ffn, width in plan.widths]
    reduce_layer = method.prepare(working, todo, config)
    reports: list[FFNReport] = []
    widths: dict[str, FFNWidth] = {}
    progress = Progress(len(todo), method.name, work=reduction_work(todo))
    for _, layer in itertools.groupby(todo, key=lambda item: (item[0].stack, item[0].layer)):
        layer_started = time.perf_counter()
        group = list(layer)
        reduced = reduce_layer(group)
        seconds = (time.perf_counter() - layer_started) / len(group)
        for ffn, _ in group:
            reports.append(ffn_report(ffn, reduced[ffn.name], method.form, seconds))
            power = FORMS[method.form].power(reduced[ffn.name].weights)
            widths[ffn.entry] = ffn_width(ffn, reports[-1].width, family, method.form, power)
        _replace([(ffn, reduced[ffn.name].weights) for ffn, _ in group], method)
        progress.update(len(group))
    progress.close()

    section = FusionSection(config, source_of(model), widths, method.name)
    smaller = build_smaller(working, section, inplace)
    smaller.fusion_report = receipt(smaller, section, plan, reports, before, time.perf_counter() - started)
    return smaller


def reduction_work(todo: Sequence[tuple[FFN, int]]) -> float:
    """About how many operations (of a forward's speed) it takes to choose and refit the units of some FFNs."""
    return float(sum(_SELECTION * ffn.width**3 for ffn, _ in todo))


def _replace(group: Sequence[tuple[FFN, ReducedWeights]], method: Method) -> None:
    """Gives the FFNs of a layer the method's form, and weights of the dtype and device of the present ones."""
    form = FORMS[method.form]
    installed = set()
    for ffn, weights, tensors in [(ffn, weights, form.tensors(ffn, weights)) for ffn, weights in group]:
        if ffn.entry not in installed:  # the experts of a stack get it together
            trainable = ffn.trainable()
            form.install(ffn, form.width(weights), ffn.width, form.power(weights))
            ffn.set_trainable(trainable)
            installed.add(ffn.entry)
        ffn.write(tensors)


def build_smaller(working: PreTrainedModel, section: FusionSection, inplace: bool) -> Any:
    """Builds the fused twin of a stock model with fused FFNs, taking over its tensors.

    Args:
        working: The stock model.
        section: The config section.
        inplace: Whether `working` is left without weights.
    """
    config_type = config_class(family_of(working.config))
    config = convert_config(working.config, config_type, {"mlp_fusion": section.to_dict()})
    fused = rebuild(working, fused_class(type(working)), config, working.state_dict())
    stock_parameters = dict(working.named_parameters(remove_duplicate=False))
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_(stock_parameters[name].requires_grad)
    if inplace:
        working.to(torch.device("meta"))  # type: ignore[arg-type]
    return fused
