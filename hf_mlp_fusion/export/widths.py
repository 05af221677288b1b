"""Which widths a stock config can be told: one number a field, whatever the FFNs that it speaks of have become."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..families import FFNSpec, family_of
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns

__all__ = ["check_widths", "stock_widths", "with_widths"]


def stock_widths(model: Any, ffns: Sequence[FFN], *, pad: bool) -> dict[str, int]:
    """The width that each config field is to have.

    Args:
        model: The fused model.
        ffns: Its FFNs.
        pad: Whether narrower FFNs may be filled up.

    Returns:
        The widths by the (dotted) names of the fields; each is that of the largest FFN that the field speaks of.

    Raises:
        FusionConfigError: FFNs that share a field differ in width (unless `pad`).
        UnsupportedModelError: The family does not name the fields.
    """
    groups: dict[str, list[FFN]] = {}
    for ffn in ffns:
        groups.setdefault(_field(model.config, ffn.spec), []).append(ffn)
    widths = {field: max(ffn.width for ffn in group) for field, group in groups.items()}
    for field, group in groups.items():
        if not pad and any(ffn.width < widths[field] for ffn in group):
            raise FusionConfigError(_widths_differ(model, field, group, widths[field]))
    return widths


def with_widths(config: PreTrainedConfig, values: dict[str, Any], ffns: Sequence[FFN], widths: dict[str, int]) -> None:
    """Writes widths into the values of a stock config.

    Args:
        config: The fused model's config.
        values: The values; changed in place.
        ffns: The FFNs.
        widths: What `stock_widths` returned.
    """
    # Values that follow from others come last, and are told what these have become.
    for spec in sorted({ffn.spec for ffn in ffns}, key=lambda spec: spec.field_value is not None):
        field = _field(config, spec)
        *path, name = field.split(".")
        place = values
        for step in path:
            place = place[step]
        width = widths[field]
        place[name] = width if spec.field_value is None else spec.field_value(SimpleNamespace(**place), width)


def check_widths(stock: type[PreTrainedModel], config: PreTrainedConfig, targets: dict[str, int]) -> None:
    """Checks that a stock config builds the widths that it was told.

    Args:
        stock: The stock class.
        config: The config.
        targets: The widths by FFN name.

    Raises:
        UnsupportedModelError: It does not: it has a ratio where other families have a number of units, say.
    """
    with torch.device("meta"):
        built = {ffn.name: ffn.width for ffn in find_ffns(stock(config))}
    for name, width in targets.items():
        if built[name] != width:
            raise UnsupportedModelError(
                f"no {type(config).__name__} makes {name} {width} units wide, the nearest are {built[name]}: fuse to "
                f"that width ({family_of(config).note})"
            )


def _field(config: PreTrainedConfig, spec: FFNSpec) -> str:
    family = family_of(config)
    field = family.width_field_of(spec)
    if field is None:
        mend = family.note or "register it with Family(..., width_field='intermediate_size')"
        raise UnsupportedModelError(
            f"the family {family.model_type!r} does not say which config field holds the width of its FFNs: {mend}"
        )
    return field


def _widths_differ(model: Any, field: str, ffns: Sequence[FFN], width: int) -> str:
    """Says which widths there are, and what it would cost to make them one."""
    groups: dict[int, list[str]] = {}
    for ffn in ffns:
        groups.setdefault(ffn.width, []).append(ffn.name)
    listed = [
        f"{units} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for units, names in sorted(groups.items())
    ]
    if len(listed) > 4:
        listed[2:-1] = [f"{len(listed) - 3} between"]
    added = sum(ffn.parameter_count(width) - ffn.parameter_count(ffn.width) for ffn in ffns)
    cost = f"{added:,} parameters more"
    if model.fusion_report is not None:
        share = (model.num_parameters() + added) / model.fusion_report.parameters_before
        cost += f", in all {share:.0%} of what there was before fusion"
    return (
        f"the FFNs have {len(groups)} widths, {', '.join(listed)}, and {field} of a "
        f"{family_of(model.config).config_class} is one number. pad=True (--pad) fills all up to {width} with zero "
        f"units: the same outputs, {cost}. To need no padding, fuse all FFNs to one width"
    )
