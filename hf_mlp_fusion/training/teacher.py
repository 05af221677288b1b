"""Which models can teach a fused model, and where they run."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..data import Batch, on_device
from ..errors import UnsupportedModelError
from ..families import family_of
from ..modeling.classes import FusedModelMixin
from ..modeling.find import find_ffns
from ..recipe import FusionSection

__all__ = ["check_teacher", "is_placed", "seen_by"]


def check_teacher(fused: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Checks that one model can teach another: that it is the model that was fused, as far as shapes tell.

    Heads may differ, and so may weights: the original may have been fine-tuned.

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
    own, others = _shapes(fused, section), _shapes(teacher, section)
    if own[0].keys() != others[0].keys():
        raise UnsupportedModelError(f"the teacher has {len(others[0])} FFNs where {len(own[0])} were: {mend}")
    for mine, theirs in zip(own, others, strict=True):
        for name in mine:
            if mine[name] != theirs.get(name, mine[name]):  # a pooler may be missing on either side
                raise UnsupportedModelError(
                    f"the teacher's {name} has the shape {theirs[name]}, the original's had {mine[name]}: {mend}"
                )


def _shapes(model: PreTrainedModel, section: FusionSection) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Sizes of each FFN before fusion (inputs, units, outputs), and shapes of all other parameters of the body."""
    ffns: dict[str, tuple[int, ...]] = {}
    reduced: tuple[str, ...] = ()
    for ffn in find_ffns(model):
        width = ffn.width
        if ffn.entry in section.ffns:
            ending = "" if ffn.spec.stacked else "."
            reduced += tuple(f"{ffn.entry}.{path}{ending}" for path in ffn.spec.projections.values())
            width = section.ffns[ffn.entry].original_width if isinstance(model, FusedModelMixin) else width
        ffns[ffn.name] = (ffn.hidden_size, width, ffn.output_size)
    parameters = model.base_model.named_parameters()
    return ffns, {name: tuple(value.shape) for name, value in parameters if not name.startswith(reduced)}


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
