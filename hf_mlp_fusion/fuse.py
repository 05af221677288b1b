"""`fuse_model`: the one way from a stock model to a fused one."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import __version__
from .calibration import calibration_batches
from .config import FusionConfig
from .errors import FusionConfigError, FusionWarning, UnsupportedModelError
from .families import family_of
from .ffn import FFN, find_ffns
from .fusing import FFNFusion, fuse_layer
from .modeling import FusedModelMixin, fused_class
from .plan import FusionPlan, plan_fusion
from .registration import config_class
from .report import FFNReport, FusionReport
from .section import FFNWidth, FusionSection

__all__ = ["fuse_model"]


def fuse_model(
    model: PreTrainedModel,
    config: FusionConfig,
    *,
    calibration: Any = None,
    tokenizer: Any = None,
    inplace: bool = False,
) -> Any:
    """Fuses the FFNs (or experts) of a model.

    Args:
        model: A stock model of a supported family, with any head.
        config: What to fuse and how.
        calibration: Data that the recipe may use, to keep the output far better than without: texts, a text file, a
            data set, or batches of model inputs (mappings of tensors). A few hundred sentences do.
        tokenizer: The tokenizer for texts; if not given, the one that lies beside the model's weights.
        inplace: Take over the model's tensors instead of copying them, to save memory. `model` is left without weights
            and must not be used again, also where fusion fails half-way.

    Returns:
        A model of the fused class (`FusedRobertaForMaskedLM` for a `RobertaForMaskedLM`) with the dtype, device and
        mode of `model`, its receipt in `fusion_report`. Unless `inplace`, `model` is untouched and shares no memory.

    Raises:
        FusionConfigError: The recipe cannot be carried out on this model, or a weight is not finite.
        UnsupportedModelError: The family is not supported, or the model is fused, wrapped, quantized or offloaded.
        DataError: The calibration data cannot be read.

    Warns:
        FusionWarning: A width below the hidden size, or below a quarter of the FFN's own.

    Example:
        >>> from hf_mlp_fusion import FusionConfig, fuse_model
        >>> fused = fuse_model(model, FusionConfig(width=0.25, layers="last:8"))  # doctest: +SKIP
        >>> fused.save_pretrained("out")  # doctest: +SKIP
    """
    _check_fusable(model)
    started = time.perf_counter()
    config = config.resolved(calibrated=calibration is not None)
    plan = plan_fusion(model, config)
    for message in plan.warnings:
        warnings.warn(message, FusionWarning, stacklevel=2)
    for ffn, _ in plan.widths:
        if not torch.isfinite(ffn.read().features()).all():
            raise FusionConfigError(f"the weights of {ffn.name} hold NaN or infinity: the checkpoint is broken")
    batches = None if calibration is None else calibration_batches(model, calibration, tokenizer)
    parameters, size = model.num_parameters(), model.get_memory_footprint()
    ffn_parameters = sum(ffn.parameter_count(ffn.width) for ffn in find_ffns(model))
    section = _section(model, plan, config)

    # A copy is fused layer by layer, so that calibration sees the layers before as they will be.
    working = model if inplace else copy.deepcopy(model)
    own = {ffn.name: ffn for ffn in find_ffns(working)}
    reports: list[FFNReport] = []
    progress = transformers_logging.tqdm(total=len(plan.widths), desc="Fusing", unit="FFN")
    for _, layer in itertools.groupby(plan.widths, key=lambda item: (item[0].stack, item[0].layer)):
        layer_started = time.perf_counter()
        group = [(own[ffn.name], width) for ffn, width in layer]
        fused_ffns = fuse_layer(working, group, config, batches)
        seconds = (time.perf_counter() - layer_started) / len(group)
        reports += [_ffn_report(ffn, width, fused_ffns[ffn.name], seconds) for ffn, width in group]
        for ffn, _ in group:
            ffn.replace(fused_ffns[ffn.name].fusion)
        progress.update(len(group))
    progress.close()

    fused = _build(working, section, inplace)
    fused.fusion_report = FusionReport(
        recipe=config.to_dict(),
        source=section.source,
        ffns=reports,
        skipped=plan.skipped,
        parameters_before=parameters,
        parameters_after=fused.num_parameters(),
        bytes_before=size,
        bytes_after=fused.get_memory_footprint(),
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
    return fused


def _check_fusable(model: PreTrainedModel) -> None:
    if isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(
            "the model is fused already, and fusion cannot be repeated or undone: start from the original, "
            f"{model.config.mlp_fusion['source'].get('name_or_path') or 'the model that was fused'}"
        )
    if not isinstance(model, PreTrainedModel):
        hint = "; call merge_and_unload() first" if hasattr(model, "peft_config") else ""
        raise UnsupportedModelError(f"fuse_model takes a transformers model, not a {type(model).__name__}{hint}")
    if getattr(model, "peft_config", None):
        raise UnsupportedModelError("the model carries PEFT adapters: merge or delete them, fuse, then add adapters")
    if getattr(model, "is_quantized", False):
        raise UnsupportedModelError("the model is quantized: load it without quantization, fuse it, then quantize")
    family_of(model.config)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UnsupportedModelError("some weights are offloaded or on the meta device: load the model without that")


def _ffn_report(ffn: FFN, width: int, fused: FFNFusion, seconds: float) -> FFNReport:
    sizes = fused.fusion.cluster_sizes
    return FFNReport(
        name=ffn.name,
        original_width=ffn.width,
        width=width,
        inertia_share=fused.inertia_share,
        largest_cluster=int(sizes.max()),
        singletons=int((sizes == 1).sum()),
        parameters_before=ffn.parameter_count(ffn.width),
        parameters_after=ffn.parameter_count(width),
        seconds=round(seconds, 3),
        method=fused.method,
        tokens=fused.tokens,
        calibration_error=fused.calibration_error,
    )


def _section(model: PreTrainedModel, plan: FusionPlan, config: FusionConfig) -> FusionSection:
    source = {
        "name_or_path": model.config.name_or_path,
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return FusionSection(config, source, {ffn.name: FFNWidth(width, ffn.width) for ffn, width in plan.widths})


def _build(working: PreTrainedModel, section: FusionSection, inplace: bool) -> Any:
    """Builds the fused twin of a stock model with fused FFNs, taking over its tensors.

    The public `from_pretrained` does it: it ties weights, fills unsaved buffers and hooks up recorded outputs.
    """
    values = working.config.to_dict()
    for name in ("model_type", "transformers_version", "architectures"):
        values.pop(name, None)
    values["mlp_fusion"] = section.to_dict()
    fused: Any = fused_class(type(working)).from_pretrained(
        None,
        config=config_class(family_of(working.config)).from_dict(values),
        state_dict=working.state_dict(),
        dtype=working.dtype,
        device_map=None if working.device.type == "cpu" else {"": working.device},
        attn_implementation=working.config._attn_implementation,
    )
    fused.train(working.training)
    stock_parameters = dict(working.named_parameters())
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_(stock_parameters[name].requires_grad)
    if getattr(working, "generation_config", None) is not None:
        fused.generation_config = working.generation_config
    if inplace:
        working.to(torch.device("meta"))  # type: ignore[arg-type]
    return fused
