"""From a recipe and a model to a plan: which FFNs become how wide, and why the others stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..recipe import FusionConfig, SkippedFFN, select_layers

__all__ = ["FusionPlan", "check_smaller", "plan_fusion"]


@dataclass
class FusionPlan:
    """What a recipe means for a model.

    Args:
        widths: The FFNs to fuse, each with the units to keep.
        skipped: The others, each with a reason.
        warnings: What the user should be warned of.
    """

    widths: list[tuple[FFN, int]] = field(default_factory=list)
    skipped: list[SkippedFFN] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_fusion(model: PreTrainedModel, config: FusionConfig) -> FusionPlan:
    """Resolves a recipe against a model. Nothing is changed.

    Args:
        model: A stock model.
        config: The recipe.

    Returns:
        The plan, in the order of the model's modules.

    Raises:
        FusionConfigError: The recipe asks for what the model does not have, or for nothing at all.
        UnsupportedModelError: The model's family is not registered, or it has no FFNs where the family's are.
    """
    ffns = list(find_ffns(model))
    if not ffns:
        raise UnsupportedModelError(f"{type(model).__name__} has no FFN that its family's specs describe")
    stacks: dict[str, int] = {}
    for ffn in ffns:
        stacks[ffn.stack] = max(stacks.get(ffn.stack, 0), ffn.layer + 1)
    selected = select_layers(config.layers, stacks, [ffn.name for ffn in ffns])
    wants_experts = _targets_experts(config, ffns)
    plan, used = FusionPlan(), set()
    for ffn in ffns:
        pattern, wanted = _wanted_width(config, ffn)
        used.add(pattern)
        width = 0 if wanted is None else _units(wanted, ffn, config)
        if f"{ffn.stack}.{ffn.layer}" not in selected and ffn.name not in selected:
            reason = f"not among layers={config.layers!r}"
        elif wants_experts is not None and wants_experts != (ffn.expert is not None):
            kind = "an expert" if ffn.expert is not None else "dense"
            reason = f"{kind}, and targets={config.targets!r}"
        elif wanted is None:
            reason = "no width pattern matches"
        elif width == ffn.width and isinstance(wanted, float) and wanted < 1.0:
            reason = f"its share, rounded to a multiple of {config.multiple_of}, is all of its {ffn.width} units"
        else:
            plan.widths.append((ffn, width))
            continue
        plan.skipped.append(SkippedFFN(ffn.name, ffn.width, reason))
    if isinstance(config.width, dict) and (unused := [name for name in config.width if name not in used]):
        raise FusionConfigError(
            f"width: no FFN has a name like {unused[0]!r} (or an earlier pattern took it); "
            f"names here are {ffns[0].name!r} to {ffns[-1].name!r}"
        )
    if not plan.widths:
        reasons = ", ".join(sorted({item.reason for item in plan.skipped}))
        raise FusionConfigError(f"the recipe fuses nothing: {reasons}. Lower multiple_of, or widen layers and targets")
    _check_stacks(ffns, plan)
    plan.warnings = list(_warnings(plan.widths))
    return plan


def check_smaller(model: PreTrainedModel, config: FusionConfig) -> None:
    """Checks that a recipe makes a model smaller: one that keeps every unit makes a fused model of the same size.

    Args:
        model: A stock model.
        config: The recipe.

    Raises:
        FusionConfigError: It does not.
    """
    widths = plan_fusion(model, config).widths
    if all(ffn.width == width for ffn, width in widths):
        raise FusionConfigError(
            f"width={config.width!r} keeps every unit, and the model would be as large as before: write fewer units "
            f"than {max(width for _, width in widths)}, or a share such as 0.25"
        )


def _targets_experts(config: FusionConfig, ffns: Iterable[FFN]) -> bool | None:
    """Whether experts or dense FFNs are meant; None for both."""
    has_experts = any(ffn.expert is not None for ffn in ffns)
    if config.targets == "experts" and not has_experts:
        raise FusionConfigError("targets='experts', but the model has no experts; write targets='auto'")
    return {"auto": has_experts, "experts": True, "dense": False, "all": None}[config.targets]


def _wanted_width(config: FusionConfig, ffn: FFN) -> tuple[str, int | float | None]:
    """The pattern that decides an FFN's width, and the width."""
    if config.auto_share is not None:
        return "", config.auto_share  # until the search has found better ones
    if not isinstance(config.width, dict):
        return "", config.width  # type: ignore[return-value]
    return next(((name, width) for name, width in config.width.items() if fnmatchcase(ffn.name, name)), ("", None))


def _check_stacks(ffns: Iterable[FFN], plan: FusionPlan) -> None:
    """Refuses different widths for the experts of a stack, which keeps them all in one parameter."""
    widths = {ffn.name: width for ffn, width in plan.widths}
    stacks: dict[str, set[int | None]] = {}
    for ffn in ffns:
        stacks.setdefault(ffn.entry, set()).add(widths.get(ffn.name))
    for name, found in stacks.items():
        if len(found) > 1:
            listed = ", ".join(sorted("all" if width is None else str(width) for width in found))
            raise FusionConfigError(
                f"{name} keeps its experts in one parameter, which has one width, and the recipe gives them {listed}: "
                f"write a pattern for all of them, such as '{name}.*'"
            )


def _units(wanted: int | float, ffn: FFN, config: FusionConfig) -> int:
    if isinstance(wanted, float):
        units = round(wanted * ffn.width / config.multiple_of) * config.multiple_of
        return min(max(units, config.multiple_of), ffn.width)
    if wanted > ffn.width:
        raise FusionConfigError(
            f"width={wanted} is more than the {ffn.width} units that {ffn.name} has; write at most {ffn.width}, "
            "or a share such as 0.25"
        )
    return wanted


def _warnings(widths: list[tuple[FFN, int]]) -> Iterable[str]:
    """The two limits below which the paper, and this project, saw quality fall."""
    # Experts may well be narrower before: there nothing was spanned.
    narrow = [ffn for ffn, width in widths if width < ffn.hidden_size <= ffn.width]
    if narrow:
        yield (
            f"{len(narrow)} of {len(widths)} FFNs become narrower than the hidden size ({narrow[0].hidden_size}): "
            "their output can no longer span it, and quality falls steeply"
        )
    quarter = [ffn for ffn, width in widths if 4 * width < ffn.width]
    if quarter:
        yield f"{len(quarter)} of {len(widths)} FFNs keep less than a quarter of their units: quality falls steeply"
