"""`fuse_model`: the one way from a stock model to a fused one."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, objective_of, plain_context, progress_over
from ..errors import FusionWarning
from ..modeling.ffn import FFN
from ..recipe import FusionConfig, FusionReport, check_recipe
from .calibration import calibration_batches, hold_out, kernel_rows
from .checks import check_reducible
from .driver import LayerReducer, Method, reduce_ffns
from .enough import TOKENS
from .foresight import check_memory, fusion_work
from .kernel_size import kernel_sizes, match_kernel_sizes
from .layer_fuser import LayerFuser, is_rare
from .plan import plan_fusion
from .sources import MomentSource, RowSource, StatisticsSource, recipe_for
from .statistics import Statistics

__all__ = ["cost_of_no_data", "few_tokens", "fuse_model"]

_NAMED = 8  # rare experts in a warning; the receipt has the tokens of all


@plain_context()
def fuse_model(
    model: PreTrainedModel,
    config: FusionConfig,
    *,
    calibration: Any = None,
    tokenizer: Any = None,
    inplace: bool = False,
) -> Any:
    """Fuses the FFNs (or experts) of a model.

    Args:
        model: A stock model of a supported family, with any head. Whether all of its weights were loaded cannot be
            seen here: heed transformers' report of MISSING ones, in whose place there is random noise. (The commands
            refuse.)
        config: What to fuse and how.
        calibration: Data that the recipe may use, to keep the output far better than without: texts, a text file, a
            data set, or batches of model inputs (mappings of tensors). Of texts 65,536 tokens are used; a few hundred
            sentences do. `"sampled"` needs none: a language model is calibrated on what it writes itself. `Statistics`
            of the model, which `hf-mlp-fusion calibrate` makes, spare all passes through it.
        tokenizer: The tokenizer for texts; if not given, the one that lies beside the model's weights. Give it
            where the model was loaded with a revision, a subfolder or a cache of its own: no model notes that.
        inplace: Take over the model's tensors instead of copying them, to save memory. `model` is left without weights
            and must not be used again, also where fusion fails half-way.

    Returns:
        A model of the fused class (`FusedRobertaForMaskedLM` for a `RobertaForMaskedLM`) with the dtype, device and
        mode of `model`, its receipt in `fusion_report`. Unless `inplace`, `model` is untouched and shares no memory.

    Raises:
        FusionConfigError: The recipe cannot be carried out on this model, or a weight is not finite.
        UnsupportedModelError: The family is not supported, or the model is fused, wrapped, quantized or offloaded.
        DataError: The calibration data cannot be read.
        BrokenCheckpointError: The statistics are broken, or of another model.
        MemoryLimitError: The machine has less memory than it takes, however batches are cut.

    Warns:
        FusionWarning: A width below the hidden size, or below a quarter of the FFN's own; fewer calibration tokens
            than units that are kept; no calibration data for a causal or gated model.

    Example:
        >>> from hf_mlp_fusion import FusionConfig, fuse_model
        >>> fused = fuse_model(model, FusionConfig(width=0.25, layers="last:8"))  # doctest: +SKIP
        >>> fused.save_pretrained("out")  # doctest: +SKIP
    """
    check_reducible(model)
    check_recipe(config)
    statistics = calibration if isinstance(calibration, Statistics) else None
    if statistics is not None:
        config = recipe_for(config, statistics)
    config = config.resolved(calibrated=calibration is not None, language=objective_of(model) in LANGUAGE_OBJECTIVES)
    batches: list[Batch] | None = None
    if calibration is not None and statistics is None:
        batches = calibration_batches(model, calibration, tokenizer)
    samples = kernel_rows(model, batches) if batches is not None and config.ntk == "match" else []
    held_out: list[Batch] = []
    if batches is not None:
        batches, held_out = hold_out(batches)
    if config.refit == "none":
        batches = None
    todo = plan_fusion(model, config).widths
    source: MomentSource | None = None if batches is None else RowSource(batches, held_out)
    if statistics is not None:
        statistics.check(model, [ffn for ffn, _ in todo])
        source = StatisticsSource(statistics)
    costly = cost_of_no_data(model, [ffn for ffn, _ in todo]) if source is None else None
    check_memory(model, todo, config, batches or [], samples, source=source, inplace=inplace)

    def prepare(working: PreTrainedModel, todo: Sequence[tuple[FFN, int]], config: FusionConfig) -> LayerReducer:
        return LayerFuser(working, todo, config, source)

    method = Method("fusion", "fused", prepare)
    started = time.perf_counter()
    with progress_over(fusion_work(model, todo, config, batches or [], samples), "Fusing"):
        names = [ffn.name for ffn, _ in todo]
        # Before fusion, which may take the model's tensors.
        wanted = kernel_sizes(model, names, samples) if samples else {}
        fused = reduce_ffns(model, config, method, inplace=inplace)
        if samples:
            match_kernel_sizes(fused, wanted, samples)
    fused.fusion_report = replace(fused.fusion_report, seconds=round(time.perf_counter() - started, 3))
    ffns = [ffn for ffn, _ in todo]
    told = [costly] if costly else [] if source is None else few_tokens(fused.fusion_report, ffns)
    for warning in told:
        warnings.warn(warning, FusionWarning, stacklevel=3)
        fused.fusion_report.warnings.append(warning)
    return fused


def cost_of_no_data(model: PreTrainedModel, ffns: Sequence[FFN]) -> str | None:
    """What fusion without data costs a model whose FFNs hardly bear it: causal and gated ones.

    Args:
        model: The model.
        ffns: The FFNs to fuse.
    """
    if objective_of(model) != "causal" and all(ffn.read().gate is None for ffn in ffns):
        return None
    return (
        "fused without calibration data, which ruins causal and gated models (SmolLM2-135M at half of its width: "
        "perplexity times 18,000; with data 2): pass calibration= (on the command line --texts or --sampled)"
    )


def few_tokens(report: FusionReport, ffns: Sequence[FFN]) -> list[str]:
    """What to say of a calibration on too few tokens: nothing, where there were enough.

    Args:
        report: The receipt.
        ffns: The FFNs that were fused.
    """
    return [warning for warning in (_few_tokens(report, ffns), _rare(report, ffns)) if warning is not None]


def _few_tokens(report: FusionReport, ffns: Sequence[FFN]) -> str | None:
    """What to say where FFNs saw fewer tokens than they keep units: such a refit fits the tokens, not the model.

    Args:
        report: The receipt.
        ffns: The FFNs that were fused. Of the experts of a mixture, all together should have seen enough.
    """
    layers = {ffn.name: (ffn.stack, ffn.layer, ffn.expert is None) for ffn in ffns}
    tokens: Counter[tuple[str, int, bool]] = Counter()
    for ffn in report.ffns:
        tokens[layers[ffn.name]] += ffn.tokens
    few = [ffn for ffn in report.ffns if tokens[layers[ffn.name]] < ffn.width]
    if not few:
        return None
    others = f" (and {len(few) - 1} other FFNs)" if len(few) > 1 else ""
    return (
        f"{few[0].name}{others} saw {few[0].tokens} calibration tokens for {few[0].width} units: give more of them, "
        f"some {TOKENS:,}"
    )


def _rare(report: FusionReport, ffns: Sequence[FFN]) -> str | None:
    """Names the experts of stacks that saw too few tokens, though all together saw enough.

    Args:
        report: The receipt.
        ffns: The FFNs that were fused.
    """
    experts = {ffn.name for ffn in ffns if ffn.spec.stacked}
    rare = [ffn for ffn in report.ffns if ffn.name in experts and is_rare(ffn.tokens, ffn.width)]
    if not rare:
        return None
    names = ", ".join(f"{ffn.name} ({ffn.tokens})" for ffn in rare[:_NAMED]) + (", ..." if rare[_NAMED:] else "")
    return (
        f"{len(rare)} of {len(experts)} experts saw too few calibration tokens for the units that they keep, and are "
        f"fused nearly as without data: {names}; more rows reach more of them"
    )
