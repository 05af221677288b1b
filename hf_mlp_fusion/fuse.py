"""`fuse_model`: the one way from a stock model to a fused one."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import __version__
from .clustering import CLUSTERINGS, inertia
from .config import FusionConfig
from .errors import FusionConfigError, FusionWarning, UnsupportedModelError
from .families import family_of
from .ffn import FFN, find_ffns
from .modeling import FusedModelMixin, fused_class
from .plan import FusionPlan, plan_fusion
from .reduction import Fusion, fuse_weights
from .registration import config_class
from .report import FFNReport, FusionReport
from .section import FFNWidth, FusionSection

__all__ = ["fuse_model"]


def fuse_model(model: PreTrainedModel, config: FusionConfig, *, inplace: bool = False) -> Any:
    """Fuses the FFNs (or experts) of a model.

    Args:
        model: A stock model of a supported family, with any head.
        config: What to fuse and how.
        inplace: Take over the model's tensors instead of copying them, to save memory. `model` is left without weights
            and must not be used again.

    Returns:
        A model of the fused class (`FusedRobertaForMaskedLM` for a `RobertaForMaskedLM`) with the dtype, device and
        mode of `model`, its receipt in `fusion_report`. Unless `inplace`, `model` is untouched and shares no memory.

    Raises:
        FusionConfigError: The recipe cannot be carried out on this model, or a weight is not finite.
        UnsupportedModelError: The family is not supported, or the model is fused, wrapped, quantized or offloaded.

    Warns:
        FusionWarning: A width below the hidden size, or below a quarter of the FFN's own.

    Example:
        >>> from hf_mlp_fusion import FusionConfig, fuse_model
        >>> fused = fuse_model(model, FusionConfig(width=0.25, layers="last:8"))  # doctest: +SKIP
        >>> fused.save_pretrained("out")  # doctest: +SKIP
    """
    _check_fusable(model)
    started = time.perf_counter()
    plan = plan_fusion(model, config)
    for message in plan.warnings:
        warnings.warn(message, FusionWarning, stacklevel=2)
    before = _size(model)
    ffn_parameters = sum(ffn.parameter_count(ffn.width) for ffn in find_ffns(model))

    entries: dict[str, torch.Tensor] = {}
    reports: list[FFNReport] = []
    for ffn, width in transformers_logging.tqdm(plan.widths, desc="Fusing", unit="FFN"):
        fusion, report = _fuse_ffn(ffn, width, config)
        entries |= ffn.entries(fusion)
        reports.append(report)

    fused = _build(model, plan, config, entries, inplace)
    after = _size(fused)
    fused_parameters = sum(report.parameters_before for report in reports)
    fused.fusion_report = FusionReport(
        recipe=config.to_dict(),
        source=fused.config.mlp_fusion["source"],
        ffns=reports,
        skipped=plan.skipped,
        parameters_before=before[0],
        parameters_after=after[0],
        bytes_before=before[1],
        bytes_after=after[1],
        ffn_parameters=ffn_parameters,
        fused_share=fused_parameters / ffn_parameters,
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


def _fuse_ffn(ffn: FFN, width: int, config: FusionConfig) -> tuple[Fusion, FFNReport]:
    started = time.perf_counter()
    weights = ffn.read()
    features = weights.features()
    if not torch.isfinite(features).all():
        raise FusionConfigError(f"the weights of {ffn.name} hold NaN or infinity: the checkpoint is broken")
    labels = CLUSTERINGS[config.clustering](features, width, config.seed)
    fusion = fuse_weights(weights, labels)
    sizes = fusion.cluster_sizes
    return fusion, FFNReport(
        name=ffn.name,
        original_width=ffn.width,
        width=width,
        inertia_share=inertia(features, labels),
        largest_cluster=int(sizes.max()),
        singletons=int((sizes == 1).sum()),
        parameters_before=ffn.parameter_count(ffn.width),
        parameters_after=ffn.parameter_count(width),
        seconds=round(time.perf_counter() - started, 3),
    )


def _build(
    model: PreTrainedModel, plan: FusionPlan, config: FusionConfig, entries: dict[str, torch.Tensor], inplace: bool
) -> Any:
    """Builds the fused twin through the public `from_pretrained`, which ties weights and fills unsaved buffers."""
    source = {
        "name_or_path": model.config.name_or_path,
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    widths = {ffn.name: FFNWidth(width, ffn.width) for ffn, width in plan.widths}
    values = model.config.to_dict()
    for name in ("model_type", "transformers_version", "architectures"):
        values.pop(name, None)
    values["mlp_fusion"] = FusionSection(config, source, widths).to_dict()
    fused_config = config_class(family_of(model.config)).from_dict(values)
    state = {
        name: entries[name] if name in entries else tensor if inplace else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    state |= entries
    fused: Any = fused_class(type(model)).from_pretrained(
        None,
        config=fused_config,
        state_dict=state,
        dtype=model.dtype,
        device_map=None if model.device.type == "cpu" else {"": model.device},
        attn_implementation=model.config._attn_implementation,
    )
    fused.train(model.training)
    stock_parameters = dict(model.named_parameters())
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_(stock_parameters[name].requires_grad)
    if getattr(model, "generation_config", None) is not None:
        fused.generation_config = copy.deepcopy(model.generation_config)
    if inplace:
        model.to(torch.device("meta"))  # type: ignore[arg-type]
    return fused


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters (tied ones once), and bytes of parameters and buffers."""
    return model.num_parameters(), model.get_memory_footprint()
