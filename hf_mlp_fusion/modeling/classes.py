"""The fused classes: `Fused<Stock>Config` and `Fused<StockModel>` for every head, made from the family registry.

They are attributes of `hf_mlp_fusion.modeling`, built when first asked for (`FusedRobertaForMaskedLM`), so they can be
imported, pickled, and found by PEFT.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.distributed.fsdp import is_fsdp_enabled

from ..errors import BrokenCheckpointError, FusionConfigError, UnsupportedModelError
from ..families import family_of
from ..hub import MODEL_TAG, add_stub, hub_errors, write_card
from ..recipe import REPORT_NAME, FusionReport, FusionSection
from ..tensors import even_cluster_sizes
from .adapters import refuse_other_widths, tell_nameless_base
from .configs import config_class
from .loading_checks import (
    check_fused_ffns,
    check_headers,
    refuse_block_kernels,
    refuse_tensor_parallelism,
)
from .modules import ClusterScaling, FusedMLP
from .narrowing import narrow_ffns, note_scales

__all__ = ["FusedModelMixin", "find_class", "fused_class", "stock_class"]

logger = logging.getLogger(__name__)

_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

_FUSED_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}


class FusedModelMixin:
    """What every fused model class adds to its stock class.

    Attributes:
        fusion_report: The receipt of the fusion, where one lies beside the weights; None otherwise.
        folded_scalings: What `fold` took out of the FFNs, by name; None in a model that is not folded.
    """

    fusion_report: FusionReport | None = None
    folded_scalings: dict[str, ClusterScaling] | None = None

    def post_init(self) -> None:
        """Narrows the stock FFNs. All modules exist by now; weights, ties and parallel plans do not yet."""
        narrow_ffns(self)  # type: ignore[arg-type]
        # Saved under the names that the modules have: conversions to older names go by stock classes and know no P.
        self._weight_conversions: list[Any] = []
        self._no_split_modules = _with_fused_names(self)  # type: ignore[arg-type]
        self.register_load_state_dict_pre_hook(refuse_other_widths)  # type: ignore[attr-defined]
        self.register_state_dict_pre_hook(tell_nameless_base)  # type: ignore[attr-defined]
        super().post_init()  # type: ignore[misc]
        self.add_model_tags(MODEL_TAG)  # type: ignore[attr-defined]

    def initialize_weights(self) -> None:
        """Gives P even sizes where none were loaded (a fused model built from its config alone)."""
        super().initialize_weights()  # type: ignore[misc]
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, ClusterScaling):
                even = even_cluster_sizes(module.cluster_sizes.shape[-1], module.original_width)
                init.copy_(module.cluster_sizes, even)
                if "kernel_scales" in module._buffers:
                    # Older checkpoints have scales in their config alone. What has a power has it in both: zeros,
                    # which no check lets pass, until it was loaded.
                    known = torch.tensor(module.every_scale)
                    init.copy_(module.kernel_scales, known if module.power == 1.0 else torch.zeros_like(known))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock class's, and refuses checkpoints whose fused FFNs are not all there, or that are pickles.

        Raises:
            BrokenCheckpointError: P is missing or no P, or a fused FFN's weights are missing or of another shape.
            FusionConfigError: Weights are loaded in the first of several processes alone, or cut up by tensor
                parallelism.
            UnsupportedModelError: `use_safetensors=False` asks for pickles.
        """
        if is_fsdp_enabled():  # that is: with RAM-efficient loading
            # Stored buffers such as P stay behind when accelerate hands the weights on (its issue 3898).
            raise FusionConfigError(
                "with fsdp_cpu_ram_efficient_loading the first process alone loads weights, and accelerate does not "
                "hand P on to the others: write fsdp_cpu_ram_efficient_loading: false"
            )
        refuse_tensor_parallelism(kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        hub_kwargs = _given(kwargs, *_HUB_KWARGS)
        if pretrained_model_name_or_path is not None and kwargs.get("gguf_file") is None:
            if kwargs.get("use_safetensors") is False:
                raise UnsupportedModelError("pickles are not read, they can run code: leave use_safetensors out")
            kwargs["use_safetensors"] = True
            config = kwargs.get("config")
            if not isinstance(config, PreTrainedConfig):
                config = cls.config_class.from_pretrained(  # type: ignore[attr-defined]
                    config or pretrained_model_name_or_path, **hub_kwargs
                )
            check_headers(pretrained_model_name_or_path, config, hub_kwargs | _given(kwargs, "variant"))
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        check_fused_ffns(model, info)
        if pretrained_model_name_or_path is not None:
            report = _find_report(pretrained_model_name_or_path, hub_kwargs)
            # Not where layers were cut off: the receipt is that of the whole model.
            section = FusionSection.from_dict(model.config.mlp_fusion)
            if report is not None and all(section.entry_of(ffn.name) in section.ffns for ffn in report.ffns):
                model.fusion_report = report
        else:
            # It is called "None" by now, and cards of Trainer and adapters would name that as their base.
            model.name_or_path = model.config.name_or_path = ""
        return (model, info) if wants_info else model

    def set_use_kernels(self, use_kernels: bool, *args: Any, **kwargs: Any) -> None:
        """As the stock class's, and refuses kernels that compute whole blocks by their stock weights, without P."""
        if use_kernels:
            refuse_block_kernels(self)  # type: ignore[arg-type]
        super().set_use_kernels(use_kernels, *args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As the stock class's, with the receipt beside the weights."""
        if self._auto_class is not None:  # type: ignore[attr-defined]
            self.config.own_auto_map()  # type: ignore[attr-defined]
        note_scales(self)  # type: ignore[arg-type]
        pushed = kwargs.get("repo_id") or str(save_directory)
        with hub_errors(pushed) if kwargs.get("push_to_hub") else contextlib.nullcontext():
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if self.fusion_report is not None and kwargs.get("is_main_process", True):
            self.fusion_report.save(save_directory)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """As the stock class's; a Hub that cannot be reached, or refuses, is a `HubError` of one line."""
        with hub_errors(repo_id):
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds a class by its name, and one that was made of a user's own by that.
        if find_class(type(self).__name__) is type(self):  # type: ignore[comparison-overlap]
            return super().__reduce_ex__(protocol)
        return _empty_fused_model, (stock_class(type(self)),), self.__dict__  # type: ignore[arg-type]

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # Between the saving and the one commit of `push_to_hub` and `save_pretrained(push_to_hub=True)`, which look
        # for changed files here: what is saved after it stays behind.
        if (Path(working_dir) / "config.json").is_file():  # a model with PEFT's adapters saves them alone
            add_stub(working_dir)
            if self.fusion_report is not None:
                self.fusion_report.save(working_dir)
                write_card(working_dir, name=repo_id, ask=False)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]


def _with_fused_names(model: PreTrainedModel) -> list[str] | None:
    """The classes that a device map must not split: those of the stock model, and what fusion made of them."""
    names = model._no_split_modules
    if not names:
        return None
    fused = {type(module).__name__ for module in model.modules() if isinstance(module, FusedMLP)}
    return [*names, *sorted(f"Fused{name}" for name in names if f"Fused{name}" in fused)]


def _given(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _find_report(name_or_path: str | Path, hub_kwargs: dict[str, Any]) -> FusionReport | None:
    """Reads the receipt beside the weights; a model without a legible one still works, so nothing raises here."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name_or_path, REPORT_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        return None if path is None else FusionReport.from_file(path)
    except (OSError, BrokenCheckpointError) as error:
        logger.warning("The fusion receipt of %s could not be read: %s", name_or_path, error)
        return None


def fused_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Returns the fused class of a stock model class, always the same one.

    Args:
        stock: A model class of a supported family, such as `RobertaForMaskedLM`, or a user's subclass of one.

    Raises:
        UnsupportedModelError: The family is not supported, or the class is fused already.
    """
    if stock in _FUSED_CLASSES:
        return _FUSED_CLASSES[stock]
    if issubclass(stock, FusedModelMixin) or stock.config_class is None:
        raise UnsupportedModelError(f"{stock.__name__} is no stock model class")
    family = family_of(stock.config_class)
    fused_config = config_class(family)
    _FUSED_CLASSES[stock] = type(
        f"Fused{stock.__name__}",
        (FusedModelMixin, stock),
        {
            "__module__": __package__,  # promised: adapters and pickles name it
            "__doc__": f"`{stock.__name__}` with fused FFNs. Made by `fuse_model` or `from_pretrained`.",
            "config_class": fused_config,
            "_keys_to_ignore_on_load_missing": [
                *(stock._keys_to_ignore_on_load_missing or ()),
                r"\.kernel_scales$",
            ],
            # transformers reads them off the source of the class's module; that of the stock class is meant.
            "_can_set_attn_implementation": classmethod(lambda cls: stock._can_set_attn_implementation()),
            "_can_set_experts_implementation": classmethod(lambda cls: stock._can_set_experts_implementation()),
        },
    )
    return _FUSED_CLASSES[stock]


def _empty_fused_model(stock: type[PreTrainedModel]) -> PreTrainedModel:
    fused = fused_class(stock)
    return fused.__new__(fused)


def stock_class(fused: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Returns the stock class that `fused_class` made a class from.

    Args:
        fused: What `fused_class` returned.
    """
    return next(
        base for base in fused.__mro__ if issubclass(base, PreTrainedModel) and not issubclass(base, FusedModelMixin)
    )


def find_class(name: str) -> type[PreTrainedModel] | None:
    """The fused class of a name such as `"FusedRobertaForMaskedLM"`; None where there is none.

    Args:
        name: The name.
    """
    stock = getattr(transformers, name.removeprefix("Fused"), None) if name.startswith("Fused") else None
    if not isinstance(stock, type) or not issubclass(stock, PreTrainedModel):
        return None
    try:
        return fused_class(stock)
    except UnsupportedModelError:
        return None
