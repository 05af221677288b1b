"""Which models can teach a fused model, and where they run."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..data import Batch, on_device
from ..errors import UnsupportedModelError
from ..families import family_of
from ..modeling.classes import FusedModelMixin
from ..modeling.find import find_ffns
from ..recipe import FFNWidth, FusionSection

__all__ = ["check_teacher", "is_placed", "seen_by"]


def check_teacher(fused: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Checks that one model can teach another: that it is the model that was fused, as far as shapes tell.

    Heads may differ, and so may weights: the original may have been fine-tuned. FFNs may be wider than those that were
    fused: the original of what was fused, healed, exported, and fused again.

    Args:
        fused: The model to teach.
        teacher: The model to teach it.

    Raises:
        UnsupportedModelError: It cannot, and why.
    """
    if not isinstance(fused, FusedModelMixin):
        raise UnsupportedModelError(f"a {type(fused).__name__} is not fused: tune what fuse_model returns")
    section = FusionSection.from_dict(fused.config.mlp_fusion)
    mend = f"give the original, {section.source.get('name_or_path') or 'the model that was fused'}"
    if isinstance(teacher, FusedModelMixin):
        raise UnsupportedModelError(f"the teacher is fused itself: {mend}")
    if not isinstance(teacher, PreTrainedModel) or family_of(teacher.config) != family_of(fused.config):
        raise UnsupportedModelError(f"a {type(teacher).__name__} cannot teach a {type(fused).__name__}: {mend}")
    own, others = _ffn_sizes(fused), _ffn_sizes(teacher)
    if own.keys() != others.keys():
        raise UnsupportedModelError(f"the teacher has {len(others)} FFNs where {len(own)} were: {mend}")
    for name, (inputs, units, outputs) in own.items():
        found = others[name]
        if (found[0], found[2]) != (inputs, outputs) or found[1] < units:
            raise _misfit(name, found, own[name], mend)
    here, there = _other_shapes(fused), _other_shapes(teacher)
    for name, shape in here.items():
        if there.get(name, shape) != shape:  # a pooler may be missing on either side
            raise _misfit(name, there[name], shape, mend)


def _misfit(name: str, theirs: tuple[int, ...], own: tuple[int, ...], mend: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the teacher's {name} has the shape {theirs}, the original's had {own}: {mend}")


def _ffn_sizes(model: PreTrainedModel) -> dict[str, tuple[int, int, int]]:
    """Inputs, units and outputs of each FFN, of a fused model before its fusion."""
    fused: dict[str, FFNWidth] = {}
    if isinstance(model, FusedModelMixin):
        fused = FusionSection.from_dict(model.config.mlp_fusion).ffns
    return {
        ffn.name: (
            ffn.hidden_size,
            fused[ffn.entry].original_width if ffn.entry in fused else ffn.width,
            ffn.output_size,
        )
        for ffn in find_ffns(model)
    }


def _other_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of what of the body is in no FFN."""
    inside = tuple(
        f"{ffn.entry}.{path}{'' if ffn.spec.stacked else '.'}"
        for ffn in find_ffns(model)
        for path in ffn.spec.projections.values()
    )
    parameters = model.base_model.named_parameters()
    return {name: tuple(value.shape) for name, value in parameters if not name.startswith(inside)}


def is_placed(model: PreTrainedModel) -> bool:
    """Whether accelerate has spread a model over devices, memory and disk: it is not to be moved then."""
    return hasattr(model, "_hf_hook")


def seen_by(teacher: PreTrainedModel, batch: Batch) -> Batch:
    """A batch where a teacher can run on it.

    Args:
        teacher: The teacher.
        batch: The batch.
    """
    return batch if is_placed(teacher) else on_device(batch, teacher)
