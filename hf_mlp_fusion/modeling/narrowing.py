"""What the config section says of the FFNs of a model: read when it is built, noted when it is saved."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from transformers import PreTrainedModel

from ..errors import BrokenCheckpointError
from ..families import Family, family_of
from ..recipe import FusionSection
from .ffn import FFN
from .find import find_ffns
from .forms import FORMS
from .loading_checks import check_scales

__all__ = ["narrow_ffns", "note_scales"]


def narrow_ffns(model: PreTrainedModel) -> None:
    """Narrows the FFNs that the model's config names, leaving their weights to be loaded or initialised.

    Args:
        model: A model of a fused class whose FFNs are still stock.

    Raises:
        BrokenCheckpointError: The config's section is missing, or speaks of FFNs that the model does not have.
    """
    if getattr(model.config, "mlp_fusion", None) is None:
        raise BrokenCheckpointError(
            f"{type(model).__name__} needs a config with an mlp_fusion section, and this one has none: "
            "it belongs to a model that is not fused. Fuse it first: fuse_model(model, FusionConfig(...))"
        )
    section = FusionSection.from_dict(model.config.mlp_fusion)
    family = family_of(model.config)
    found = {ffn.entry: ffn for ffn in find_ffns(model)}
    kept = {name: widths for name, widths in section.ffns.items() if not _is_cut_off(name, family, found.values())}
    if len(kept) < len(section.ffns):  # what is saved speaks of the layers that there are
        model.config.mlp_fusion = replace(section, ffns=kept).to_dict()
    for name, widths in kept.items():
        ffn = found.get(name)
        if ffn is None:
            # An encoder loaded alone from an encoder-decoder: the other stack's FFNs are not there to be narrowed.
            if family.specs_of(name) and not hasattr(model.base_model, name.split(".")[0]):
                continue
            raise BrokenCheckpointError(f"the mlp_fusion section names {name!r:.80}, which the model does not have")
        form = FORMS[widths.form]
        if form.is_installed(ffn, widths.width):
            continue
        if ffn.width != widths.original_width:
            raise BrokenCheckpointError(
                f"config.json contradicts itself: the mlp_fusion section says that {name!r} had "
                f"{widths.original_width} units, the model's own fields make it {ffn.width}"
            )
        form.install(ffn, widths.width, widths.original_width, widths.power)
        if widths.scales is not None and (holder := ffn.holder) is not None:
            check_scales(name, widths.scales, holder)
            holder.scales = widths.scales


def note_scales(model: PreTrainedModel) -> None:
    """Notes the scales of the NTK calibration in a model's config, as they are now.

    Args:
        model: A fused model.
    """
    section = FusionSection.from_dict(model.config.mlp_fusion)
    scales = {}
    for ffn in find_ffns(model):
        if (holder := ffn.holder) is not None:
            noted = section.ffns[ffn.entry].scales is not None or holder.kept_scales is not None
            scales[ffn.entry] = holder.scales if noted else None
    model.config.mlp_fusion = section.with_scales(scales).to_dict()


def _is_cut_off(name: str, family: Family, found: Iterable[FFN]) -> bool:
    """Whether an FFN lay in a layer behind the last: stock models too are built and loaded with fewer layers."""
    for spec in family.specs_of(name):
        match = re.fullmatch(spec.pattern, name)
        assert match is not None
        groups = match.groupdict()
        layers = [ffn.layer for ffn in found if ffn.stack == (groups.get("stack") or "")]
        return bool(layers) and int(groups.get("layer") or 0) > max(layers)
    return False
