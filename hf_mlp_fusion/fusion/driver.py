"""The one way from a stock model to a smaller one: the walk over its FFNs that fusion and its rivals share."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import transformers
from transformers import PreTrainedModel

from .. import __version__
from ..data import Progress
from ..errors import FusionConfigError, FusionWarning, UnsupportedModelError
from ..families import family_of
from ..modeling.building import check_built, convert_config, rebuild
from ..modeling.classes import FusedModelMixin, fused_class
from ..modeling.configs import config_class
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.forms import FORMS, ReducedWeights
from ..recipe import FFNReport, FFNWidth, FusionConfig, FusionReport, FusionSection
from ..tensors import Fusion
from .plan import plan_fusion

__all__ = [
    "LayerReducer",
    "Method",
    "ReducedFFN",
    "check_reducible",
    "check_whole",
    "reduce_ffns",
    "reduction_work",
    "source_of",
]

_SELECTION = 30  # operations of a selection and a refit: float64, and memory more than arithmetic

Weights = TypeVar("Weights", bound=ReducedWeights, covariant=True)


@dataclass(frozen=True)
class ReducedFFN(Generic[Weights]):
    """What a method made of one FFN, and how.

    Args:
        weights: Its weights, of the kind that the method's form takes.
        inertia_share: Share of the units' variance that the clusters lose, where units were clustered.
        method: `"clusters"` or `"obs"`, and the refit behind a plus; or the baseline.
        tokens: Tokens that it was calibrated on.
        calibration_error: Relative output error on further rows, None without calibration.
    """

    weights: Weights
    inertia_share: float | None
    method: str
    tokens: int = 0
    calibration_error: float | None = None


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
        if not torch.isfinite(ffn.read().features()).all():
            raise FusionConfigError(f"the weights of {ffn.name} hold NaN or infinity: the checkpoint is broken")
    parameters, size = model.num_parameters(), model.get_memory_footprint()
    ffn_parameters = sum(ffn.parameter_count(ffn.width) for ffn in find_ffns(model))

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
            reports.append(_ffn_report(ffn, reduced[ffn.name], method, seconds))
            host = ffn.spec.host if len(family.specs_of(ffn.entry)) > 1 else None
            widths[ffn.entry] = FFNWidth(reports[-1].width, ffn.width, method.form, host=host)
        _replace([(ffn, reduced[ffn.name].weights) for ffn, _ in group], method)
        progress.update(len(group))
    progress.close()

    section = FusionSection(config, source_of(model), widths, method.name)
    smaller = _build(working, section, inplace)
    smaller.fusion_report = FusionReport(
        recipe=config.to_dict(),
        source=section.source,
        ffns=reports,
        skipped=plan.skipped,
        parameters_before=parameters,
        parameters_after=smaller.num_parameters(),
        bytes_before=size,
        bytes_after=smaller.get_memory_footprint(),
        ffn_parameters=ffn_parameters,
        fused_share=sum(report.parameters_before for report in reports) / ffn_parameters,
        seconds=round(time.perf_counter() - started, 3),
        warnings=plan.warnings,
        versions={
            "hf_mlp_fusion": __version__,
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
        },
    )
    return smaller


def reduction_work(todo: Sequence[tuple[FFN, int]]) -> float:
    """About how many operations (of a forward's speed) it takes to choose and refit the units of some FFNs."""
    return float(sum(_SELECTION * ffn.width**3 for ffn, _ in todo))


def check_reducible(model: PreTrainedModel) -> None:
    """Checks that a model is one that can be made smaller.

    Args:
        model: The model.

    Raises:
        UnsupportedModelError: It is not, and why.
    """
    if isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(
            "the model is fused already, and fusion cannot be repeated or undone: start from the original, "
            f"{model.config.mlp_fusion['source'].get('name_or_path') or 'the model that was fused'}"
        )
    check_whole(model)


def check_whole(model: PreTrainedModel) -> None:
    """Checks that all weights of a model are there to be read and written, and nothing else computes beside them.

    Args:
        model: The model, stock or fused.

    Raises:
        UnsupportedModelError: They are not, and why; or its family is not supported, or the model is not what its
            class and config build.
    """
    if not isinstance(model, PreTrainedModel):
        hint = "; call merge_and_unload() first" if hasattr(model, "peft_config") else ""
        raise UnsupportedModelError(f"a transformers model is needed, not a {type(model).__name__}{hint}")
    if getattr(model, "peft_config", None):
        raise UnsupportedModelError("the model carries PEFT adapters: merge or delete them first, add adapters after")
    if getattr(model, "is_quantized", False) and not _from_gguf(model):
        raise UnsupportedModelError("the model is quantized: load it without quantization, and quantize afterwards")
    family_of(model.config)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UnsupportedModelError("some weights are offloaded or on the meta device: load the model without that")
    check_built(model)


def _from_gguf(model: PreTrainedModel) -> bool:
    """Whether a model was read from GGUF and is all floats now: it calls itself quantized, and is not."""
    method = getattr(model, "quantization_method", None)
    return str(getattr(method, "value", method)) == "gguf" and all(p.is_floating_point() for p in model.parameters())


def _ffn_report(ffn: FFN, reduced: ReducedFFN[ReducedWeights], method: Method, seconds: float) -> FFNReport:
    form, weights = FORMS[method.form], reduced.weights
    sizes = weights.cluster_sizes if isinstance(weights, Fusion) else None
    tensors = form.tensors(ffn, weights).values()
    return FFNReport(
        name=ffn.name,
        original_width=ffn.width,
        width=form.width(weights),
        inertia_share=reduced.inertia_share,
        largest_cluster=None if sizes is None else int(sizes.max()),
        singletons=None if sizes is None else int((sizes == 1).sum()),
        parameters_before=ffn.parameter_count(ffn.width),
        parameters_after=sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()),
        seconds=round(seconds, 3),
        method=reduced.method,
        tokens=reduced.tokens,
        calibration_error=reduced.calibration_error,
    )


def _replace(group: Sequence[tuple[FFN, ReducedWeights]], method: Method) -> None:
    """Gives the FFNs of a layer the method's form, and weights of the dtype and device of the present ones."""
    form = FORMS[method.form]
    installed = set()
    for ffn, width, tensors in [(ffn, form.width(weights), form.tensors(ffn, weights)) for ffn, weights in group]:
        if ffn.entry not in installed:  # the experts of a stack get it together
            trainable = ffn.trainable()
            form.install(ffn, width, ffn.width)
            ffn.set_trainable(trainable)
            installed.add(ffn.entry)
        ffn.write(tensors)


def source_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a receipt says of the model that it is of."""
    return {
        "name_or_path": model.config.name_or_path,
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _build(working: PreTrainedModel, section: FusionSection, inplace: bool) -> Any:
    """Builds the fused twin of a stock model with fused FFNs, taking over its tensors."""
    config_type = config_class(family_of(working.config))
    config = convert_config(working.config, config_type, {"mlp_fusion": section.to_dict()})
    fused = rebuild(working, fused_class(type(working)), config, working.state_dict())
    stock_parameters = dict(working.named_parameters(remove_duplicate=False))
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_(stock_parameters[name].requires_grad)
    if inplace:
        working.to(torch.device("meta"))  # type: ignore[arg-type]
    return fused
