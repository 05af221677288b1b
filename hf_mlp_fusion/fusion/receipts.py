"""What became of FFNs, as the receipt and the config section tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import transformers
from transformers import PreTrainedModel

from .. import __version__
from ..families import Family
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.forms import FORMS, ReducedWeights
from ..recipe import FFNReport, FFNWidth, FusionReport, FusionSection
from ..tensors import Fusion
from .plan import FusionPlan

__all__ = ["ReducedFFN", "Size", "ffn_report", "ffn_width", "receipt", "source_of"]

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


@dataclass(frozen=True)
class Size:
    """The size of a model before its FFNs become smaller.

    Args:
        parameters: Parameters of the whole model, tied ones counted once.
        total_bytes: Bytes of parameters and buffers.
        ffn_parameters: Parameters of all FFNs.
    """

    parameters: int
    total_bytes: int
    ffn_parameters: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Size:
        """The size of a model, whose weights need not be there."""
        ffn_parameters = sum(ffn.parameter_count(ffn.width) for ffn in find_ffns(model))
        return cls(model.num_parameters(), model.get_memory_footprint(), ffn_parameters)


def receipt(
    smaller: PreTrainedModel,
    section: FusionSection,
    plan: FusionPlan,
    reports: Sequence[FFNReport],
    before: Size,
    seconds: float,
) -> FusionReport:
    """The receipt of a model whose FFNs were made smaller.

    Args:
        smaller: The model, whose weights need not be there.
        section: Its config section.
        plan: What was to be done.
        reports: What became of each FFN.
        before: The size of the model before.
        seconds: What it took.
    """
    return FusionReport(
        recipe=section.recipe.to_dict(),
        source=section.source,
        ffns=[*reports],
        skipped=plan.skipped,
        parameters_before=before.parameters,
        parameters_after=smaller.num_parameters(),
        bytes_before=before.total_bytes,
        bytes_after=smaller.get_memory_footprint(),
        ffn_parameters=before.ffn_parameters,
        fused_share=sum(report.parameters_before for report in reports) / before.ffn_parameters,
        seconds=round(seconds, 3),
        warnings=plan.warnings,
        versions={
            "hf_mlp_fusion": __version__,
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
        },
    )


def ffn_report(ffn: FFN, reduced: ReducedFFN[ReducedWeights], form_name: str, seconds: float) -> FFNReport:
    """The entry of an FFN in the receipt.

    Args:
        ffn: The FFN as it was.
        reduced: What became of it.
        form_name: Its form now.
        seconds: What it took.
    """
    form, weights = FORMS[form_name], reduced.weights
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


def ffn_width(ffn: FFN, width: int, family: Family, form: str, power: float = 1.0) -> FFNWidth:
    """The entry of an FFN, or of the stack that it is in, in the config section.

    Args:
        ffn: The FFN as it was.
        width: Units that it has now.
        family: The model's family.
        form: Its form now.
        power: Power of the cluster sizes that its P is, where it has one.
    """
    host = ffn.spec.host if len(family.specs_of(ffn.entry)) > 1 else None
    return FFNWidth(width, ffn.width, form, host=host, power=power)


def source_of(model: PreTrainedModel) -> dict[str, Any]:
    """What the config section and the receipt say of the model that was made smaller.

    Args:
        model: That model.
    """
    return {
        "name_or_path": model.config.name_or_path,
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
