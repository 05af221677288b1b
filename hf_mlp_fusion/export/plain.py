"""`export_plain`: a fused model as one of its stock class, for engines that do not know this package."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from .. import __version__
from ..errors import FusionConfigError, UnsupportedModelError
from ..families import Family, family_of
from ..files import carry_side_files, check_output_folder, output_folder, write_text
from ..fusion import check_whole
from ..modeling.building import convert_config, rebuild
from ..modeling.classes import FusedModelMixin, stock_class
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.loading import load_fused_model
from .folding import folded_weights
from .onnx import check_onnx, export_onnx

__all__ = ["ExportReport", "export_plain"]


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Args:
        architecture: The stock class.
        width_field: The config field that holds the width of its FFNs.
        width: That width.
        dtype: Dtype of the weights.
        parameters: Its parameters.
        bytes: Bytes of parameters and buffers.
        padded: The FFNs that were filled up with zero units: their own widths, by name.
        padding_parameters: Parameters that this added to the fused model's.
        padding_bytes: Bytes of these.
        parameters_original: Parameters of the model before fusion, where its receipt says so.
        onnx_error: Largest difference of an output of `model.onnx` from the export's, relative to the largest output;
            None without ONNX.
    """

    architecture: str
    width_field: str
    width: int
    dtype: str
    parameters: int
    bytes: int
    padded: dict[str, int]
    padding_parameters: int
    padding_bytes: int
    parameters_original: int | None = None
    onnx_error: float | None = None

    def to_json(self) -> str:
        """Returns the fields as a JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"


def export_plain(
    model: PreTrainedModel | str | Path,
    out: str | Path,
    *,
    pad: bool = False,
    onnx: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a fused model as one of its stock class, which loads anywhere without this package.

    P is multiplied into the weights (see `fold`), so the outputs stay, up to rounding, and the training dynamics do
    not: the export is for inference. Fine-tune the fused model, and export what comes of it.

    A stock config has one number for the width of all FFNs. Where they have several widths (a model of which only the
    last layers were fused), `pad` fills all up to the largest with zero units. They change no output and cost the
    parameters that fusion had saved there.

    Args:
        model: A fused model, which stays as it is, or its folder or Hub id; then tokenizer and the like come along.
        out: Folder to write, whole or not at all.
        pad: Fill narrower FFNs up to the width of the largest.
        onnx: Write `model.onnx` besides, in float32, and check it (`hf_mlp_fusion.export.onnx`).
        dtype: Dtype of the exported weights, as they are if not given.
        overwrite: Replace a model folder that is there.

    Returns:
        What was made, and what padding cost.

    Raises:
        FusionConfigError: The FFNs differ in width (unless `pad`), a weight is too large for its dtype, `out` is not
            free, or ONNX is not installed.
        UnsupportedModelError: No stock class holds such a model: low-rank FFNs, a class of the user's own, a family
            without `width_field`; or it is not fused, carries adapters, is quantized or offloaded, or ONNX has no
            graph for it.
        OSError: The folder could not be written.

    Example:
        >>> from hf_mlp_fusion import export_plain
        >>> export_plain("fused", "plain").width  # doctest: +SKIP
        384
    """
    out = Path(out).expanduser()
    source = str(model) if isinstance(model, str | Path) else None
    check_output_folder(out, overwrite=overwrite, source=source)
    if isinstance(model, str | Path):
        model = load_fused_model(str(model))
    check_whole(model)
    if onnx:
        check_onnx(model)
    plain, report = plain_model(model, pad=pad, dtype=dtype)
    with output_folder(out, overwrite=overwrite) as folder:
        if source is not None:
            carry_side_files(source, folder)
        plain.save_pretrained(folder)
        write_text(folder / "README.md", _note(report))
        if onnx:
            report = replace(report, onnx_error=export_onnx(plain, folder / "model.onnx"))
    return report


@torch.no_grad()
def plain_model(
    model: PreTrainedModel, *, pad: bool = False, dtype: torch.dtype | None = None
) -> tuple[Any, ExportReport]:
    """The model of the stock class that `export_plain` writes.

    Args:
        model: A fused model. It stays as it is; the plain one shares the tensors that folding leaves alone.
        pad: As for `export_plain`.
        dtype: As for `export_plain`.

    Returns:
        The model, and what was made.

    Raises:
        FusionConfigError: As `export_plain`.
        UnsupportedModelError: As `export_plain`.
    """
    if not isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(f"{type(model).__name__} is a stock class already: save_pretrained exports it")
    stock, family = stock_class(type(model)), family_of(model.config)
    if getattr(transformers, stock.__name__, None) is not stock:
        raise UnsupportedModelError(f"{stock.__name__} is no class of transformers: nothing could load the export")
    if family.width_field is None:
        raise UnsupportedModelError(
            f"the family {family.model_type!r} does not say which config field holds the width of its FFNs: "
            "register it with Family(..., width_field='intermediate_size')"
        )
    ffns = list(find_ffns(model))
    low_rank = [ffn.name for ffn in ffns if ffn.is_low_rank]
    if low_rank:
        raise UnsupportedModelError(
            f"{low_rank[0]} has projections of low rank, two matrices each, and {stock.__name__} has room for one: "
            "multiplied out they would be as large as the original's"
        )
    width = max(ffn.width for ffn in ffns)
    narrower = [ffn for ffn in ffns if ffn.width < width]
    if narrower and not pad:
        raise FusionConfigError(_widths_differ(model, family, ffns, width))

    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".cluster_sizes")}
    for ffn in ffns:
        weights = folded_weights(ffn, dtype).padded(width)
        state |= {f"{ffn.full_name}.{name}": tensor for name, tensor in ffn.tensors(weights).items()}
    config = convert_config(model.config, getattr(transformers, family.config_class), {str(family.width_field): width})
    plain = rebuild(model, stock, config, state, dtype)
    added = plain.num_parameters() - model.num_parameters()
    original = None if model.fusion_report is None else model.fusion_report.parameters_before
    return plain, ExportReport(
        architecture=stock.__name__,
        width_field=family.width_field,
        width=width,
        dtype=str(plain.dtype).removeprefix("torch."),
        parameters=plain.num_parameters(),
        bytes=plain.get_memory_footprint(),
        padded={ffn.name: ffn.width for ffn in narrower},
        padding_parameters=added,
        padding_bytes=added * plain.dtype.itemsize,
        parameters_original=original,
    )


def _note(report: ExportReport) -> str:
    """What whoever finds the folder must know."""
    padded = (
        f" {len(report.padded)} FFNs are filled up to that width with zero units, which change nothing."
        if report.padded
        else ""
    )
    return (
        "# A fused model, folded for inference\n\n"
        f"A `{report.architecture}` with `{report.width_field}` = {report.width}, exported by hf_mlp_fusion "
        f"{__version__}.{padded} Its outputs are those of the fused model. Its training dynamics are not, because the "
        "scaling matrix P is multiplied into the weights: to fine-tune, take the fused model.\n"
    )


def _widths_differ(model: Any, family: Family, ffns: list[FFN], width: int) -> str:
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
        f"the FFNs have {len(groups)} widths, {', '.join(listed)}, and {family.width_field} of a "
        f"{family.config_class} is one number. pad=True (--pad) fills all up to {width} with zero units: the same "
        f"outputs, {cost}. To need no padding, fuse all FFNs to one width"
    )
