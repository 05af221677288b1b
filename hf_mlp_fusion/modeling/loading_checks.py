"""What is checked when a fused model is loaded: before anything is built, and when all is there."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import BrokenCheckpointError, FusionConfigError, FusionWarning
from ..families import family_of
from ..hub import check_stored_ffns, stored_tensors
from ..recipe import FusionSection
from ..tensors import check_cluster_sizes
from .find import by_entry, find_ffns
from .forms import FORMS
from .modules import ClusterScaling, FusedMLP

__all__ = [
    "check_fused_ffns",
    "check_headers",
    "check_nothing_missing",
    "check_scales",
    "refuse_block_kernels",
    "refuse_tensor_parallelism",
]

_CAST = 1e-2  # what loading in half precision does to scales, at most

# Fields of configs that count layers, and experts, which a stack holds in one tensor.
_LAYERS = ("num_hidden_layers", "num_decoder_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_fused_ffns(model: PreTrainedModel, loading_info: dict[str, Any]) -> None:
    """Checks that the fused FFNs of a loaded model came whole from the checkpoint.

    Args:
        model: The loaded model.
        loading_info: What `from_pretrained(output_loading_info=True)` returned with it.

    Raises:
        BrokenCheckpointError: They did not.
    """
    section = FusionSection.from_dict(model.config.mlp_fusion)
    ffns = [group[0] for group in by_entry(find_ffns(model)) if group[0].entry in section.ffns]  # one of a stack
    parts = {name for ffn in ffns for name in ffn.parameter_names()}
    scalings = tuple(FORMS[section.ffns[ffn.entry].form].scaling_name(ffn) for ffn in ffns)
    missing = set(loading_info["missing_keys"])
    mismatched = {item[0] if isinstance(item, tuple) else item for item in loading_info["mismatched_keys"]}
    for names, fault in ((missing, "lacks"), (mismatched, "has in another shape")):
        bad = sorted(name for name in names if name in scalings or name in parts)
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise BrokenCheckpointError(
                f"the checkpoint {fault} {bad[0]!r}{more}, part of a fused FFN; without it the model would compute "
                "garbage. Fetch the files anew, or fuse the original model again"
            )
    for ffn, name in zip(ffns, scalings, strict=True):
        if name is None:
            continue
        scaling = ffn.holder
        assert scaling is not None
        if scaling.cluster_sizes.is_meta and not hasattr(scaling, "_hf_hook"):  # a model without weights
            continue
        check_cluster_sizes(_on_cpu(scaling), scaling.original_width, name)
        scaling.remember()
        unread = {*loading_info["unexpected_keys"], *mismatched}
        _check_kernel_scales(scaling, name.replace("cluster_sizes", "kernel_scales"), unread)


def _check_kernel_scales(scaling: ClusterScaling, name: str, unread: Collection[str]) -> None:
    """Checks that weights and config have the same scales: of another fusion, they would compute something else."""
    stored = scaling._buffers.get("kernel_scales")
    same = name not in unread
    if same and stored is not None:
        known = torch.tensor(scaling.every_scale, dtype=torch.float32)
        same = torch.allclose(stored.float().cpu(), known, rtol=_CAST)
    if not same:
        raise BrokenCheckpointError(
            f"{name} of the weights and the mlp_fusion section of config.json differ: they are of two fusions. Take "
            "both files of one"
        )
    scaling.keep_scales()  # as they were before loading cast them


def check_headers(name_or_path: str | Path, config: Any, hub_kwargs: dict[str, Any]) -> None:
    """Refuses a checkpoint by its headers, before anything is built or allocated for it.

    Only there is to be seen that P is stored as integers: loading casts it, and 4.5 becomes 4.

    Args:
        name_or_path: A folder or Hub id.
        config: Its config.
        hub_kwargs: `revision`, `subfolder`, `variant` and their like, as `from_pretrained` takes them.

    Raises:
        BrokenCheckpointError: It is not what its config says.
    """
    if getattr(config, "mlp_fusion", None) is None:
        return
    section = FusionSection.from_dict(config.mlp_fusion)
    stored = stored_tensors(name_or_path, hub_kwargs, getattr(config, "transformers_weights", None))
    quantized = getattr(config, "quantization_config", None) is not None
    check_stored_ffns(stored, section, family_of(config), quantized=quantized)
    largest = max((size for tensor in stored.values() for size in tensor.shape[:1]), default=0)
    for name, most in [(name, len(stored)) for name in _LAYERS] + [
        (name, max(largest, len(stored))) for name in _EXPERTS
    ]:
        count = getattr(config, name, None)
        if isinstance(count, int) and count > most:
            raise BrokenCheckpointError(
                f"config.json has {name}={count}, but the checkpoint has {len(stored)} tensors in all"
            )


def check_scales(name: str, scales: Sequence[Any], holder: ClusterScaling) -> None:
    """Checks that the config section has the scales of each expert of a stack, and of another FFN one set.

    Args:
        name: Name of the entry.
        scales: What it has.
        holder: The module that holds P.

    Raises:
        BrokenCheckpointError: It has not.
    """
    sets = len(scales) if isinstance(scales[0], tuple) else None
    experts = len(holder.cluster_sizes) if holder.cluster_sizes.dim() == 2 else None
    if sets != experts:
        raise BrokenCheckpointError(
            f"the mlp_fusion section of config.json is broken: ffns[{name!r:.80}] has the scales of "
            f"{'one FFN' if sets is None else f'{sets} experts'}, the model has {experts or 'no'} experts there"
        )


def check_nothing_missing(
    model: PreTrainedModel, loading_info: Mapping[str, Any], name_or_path: str, *, new_head: bool = False
) -> None:
    """Checks that all weights of a loaded model came from the checkpoint: transformers makes up those that did not.

    Args:
        model: The loaded model.
        loading_info: What `from_pretrained(output_loading_info=True)` returned with it.
        name_or_path: Where it was loaded from, for the message.
        new_head: Whether it was loaded to get a new head, which no checkpoint has yet.

    Raises:
        BrokenCheckpointError: Some are missing.
    """
    missing = sorted(loading_info["missing_keys"])
    base = f"{model.base_model_prefix}." if model.base_model is not model else ""
    # A pooler is no part of what the other heads were trained with, and many checkpoints have none.
    pooler = [name for name in missing if name.startswith(f"{base}pooler.")]
    lost = [name for name in missing if name not in pooler and not (new_head and base and not name.startswith(base))]
    if lost:
        every = len(model.state_dict())
        raise BrokenCheckpointError(
            f"{name_or_path} lacks {len(lost)} of the {every} weights of {type(model).__name__}, "
            f"{', '.join(map(repr, lost[:3]))}{', ...' if len(lost) > 3 else ''}, and random ones would take their "
            "place. Fetch the files anew, and see that config.json (model_type, architectures) is that of the weights"
        )
    if pooler and not new_head:
        warnings.warn(
            f"{name_or_path} has no weights for {', '.join(pooler)}: they are random, as in the stock model",
            FusionWarning,
            stacklevel=2,
        )


def refuse_block_kernels(model: PreTrainedModel) -> None:
    """Refuses kernels from the Hub in the place of modules that hold fused FFNs, whose P they would not know.

    Args:
        model: A fused model.

    Raises:
        FusionConfigError: It has such a module, as GPT-OSS has (`MegaBlocksMoeMLP`).
    """
    for name, module in model.named_modules():
        kernel = getattr(module, "kernel_layer_name", None)
        if kernel is not None and any(isinstance(part, FusedMLP) for part in (module, *module.children())):
            raise FusionConfigError(
                f"the kernel {kernel} would compute {name} without P: leave use_kernels out, or export the model "
                "(hf-mlp-fusion export) and take kernels there"
            )


def refuse_tensor_parallelism(kwargs: Mapping[str, Any]) -> None:
    """Refuses to cut up the weights of fused FFNs.

    Args:
        kwargs: What `from_pretrained` was given.

    Raises:
        FusionConfigError: It asks for tensor parallelism.
    """
    plan = kwargs.get("distributed_config")
    planned = (getattr(plan, name, None) for name in ("tp_plan", "tp_size", "ep_size"))
    sizes = (kwargs.get("tp_plan"), kwargs.get("tp_size"), *planned)
    if any(size not in (None, 1) for size in sizes):
        raise FusionConfigError(
            "tensor parallelism cuts hidden units apart, and P stays whole: for inference export the model "
            "(hf-mlp-fusion export) and load that with tensor parallelism; to train on several GPUs take FSDP2 or DDP"
        )


def _on_cpu(scaling: ClusterScaling) -> torch.Tensor:
    if not scaling.cluster_sizes.is_meta:
        return scaling.cluster_sizes.cpu()
    from accelerate.utils import align_module_device  # offloaded to disk

    with align_module_device(scaling, "cpu"):
        return scaling.cluster_sizes.clone()
