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
from ..data import plain_context, save_carrying
from ..errors import UnsupportedModelError
from ..families import family_of
from ..files import check_output_folder, output_folder, write_text
from ..fusion import check_whole
from ..hub import check_side_files
from ..modeling.building import convert_config, rebuild
from ..modeling.classes import FusedModelMixin, stock_class
from ..modeling.find import by_entry, find_ffns
from ..modeling.loading import load_fused_model
from .folding import folded_weights
from .onnx import check_onnx, export_onnx
from .widths import check_widths, stock_widths, with_widths

__all__ = ["ExportReport", "export_plain"]


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Args:
        architecture: The stock class.
        widths: The widths of its FFNs, by the config fields that hold them.
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
    widths: dict[str, int]
    dtype: str
    parameters: int
    bytes: int
    padded: dict[str, int]
    padding_parameters: int
    padding_bytes: int
    parameters_original: int | None = None
    onnx_error: float | None = None

    @property
    def width(self) -> int:
        """Hidden units of an FFN; of the widest, where a model has several widths."""
        return max(self.widths.values())

    @property
    def width_field(self) -> str:
        """The config field of that width; all of them, where there are several."""
        return ", ".join(self.widths)

    def to_json(self) -> str:
        """Returns the fields as a JSON object."""
        return json.dumps(asdict(self) | {"width": self.width}, indent=2) + "\n"


@plain_context()
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

    P is multiplied into the weights (see `fold`), so the outputs stay, up to rounding. Where P was apart (a power
    above 0), the training dynamics do not: fine-tune the fused model, and export what comes of it.

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
    if source is not None:
        check_side_files(source)
    check_whole(model)
    if onnx:
        check_onnx(model)
    plain, report = plain_model(model, pad=pad, dtype=dtype)
    with output_folder(out, overwrite=overwrite) as folder:
        if source is not None:
            save_carrying(plain, source, folder)
        else:
            plain.save_pretrained(folder)
        write_text(folder / "README.md", _note(report))
        if onnx:
            report = replace(report, onnx_error=export_onnx(plain, folder / "model.onnx"))
    return report


@torch.no_grad()
@plain_context()
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
    ffns = list(find_ffns(model))
    low_rank = [ffn.name for ffn in ffns if ffn.is_low_rank]
    if low_rank:
        raise UnsupportedModelError(
            f"{low_rank[0]} has projections of low rank, two matrices each, and {stock.__name__} has room for one: "
            "multiplied out they would be as large as the original's"
        )
    widths = stock_widths(model, ffns, pad=pad)
    targets = {ffn.name: widths[str(family.width_field_of(ffn.spec))] for ffn in ffns}

    own = (".cluster_sizes", ".kernel_scales")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(own)}
    for group in by_entry(ffns):
        each = [ffn.tensors(folded_weights(ffn, dtype).padded(targets[ffn.name])) for ffn in group]
        state |= {f"{group[0].full_name}.{name}": group[0].joined([own[name] for own in each]) for name in each[0]}
    config = convert_config(model.config, getattr(transformers, family.config_class), {})
    values = config.to_dict()
    with_widths(model.config, values, ffns, widths)
    config = type(config).from_dict(values)
    check_widths(stock, config, targets)
    plain = rebuild(model, stock, config, state, dtype)
    plain._weight_conversions = None  # save_pretrained then writes the names of the Hub, as of any stock model
    added = plain.num_parameters() - model.num_parameters()
    original = None if model.fusion_report is None else model.fusion_report.parameters_before
    return plain, ExportReport(
        architecture=stock.__name__,
        widths=widths,
        dtype=str(plain.dtype).removeprefix("torch."),
        parameters=plain.num_parameters(),
        bytes=plain.get_memory_footprint(),
        padded={ffn.name: ffn.width for ffn in ffns if ffn.width < targets[ffn.name]},
        padding_parameters=added,
        padding_bytes=added * plain.dtype.itemsize,
        parameters_original=original,
    )


def _note(report: ExportReport) -> str:
    """What whoever finds the folder must know."""
    widths = ", ".join(f"`{field}` = {width}" for field, width in report.widths.items())
    padded = (
        f" {len(report.padded)} FFNs are filled up to that width with zero units, which change nothing."
        if report.padded
        else ""
    )
    return (
        "# A fused model, folded for inference\n\n"
        f"A `{report.architecture}` with {widths}, exported by hf_mlp_fusion "
        f"{__version__}.{padded} Its outputs are those of the fused model. Where its scaling matrix P stood "
        "apart, it is multiplied into the weights and training goes otherwise: to fine-tune, take the fused model.\n"
    )
