"""From a stock model to a fused one: the plan, the walk over its FFNs, calibration.

May import `measure`, `data`, `modeling` and what is below.
"""

from .calibrate import calibrate_model
from .calibration import SAMPLED, calibration_batches, first_rows
from .checks import check_finite, check_reducible, check_whole
from .driver import LayerReducer, Method, build_smaller, reduce_ffns, reduction_work
from .enough import enough_rows
from .foresight import reduction_bytes
from .fuse import cost_of_no_data, few_tokens, fuse_model
from .kernel_size import calibrate_ntk
from .layer_fuser import LayerFuser, moment_bytes
from .offloaded import calibrate_checkpoint
from .plan import check_smaller, plan_fusion
from .receipts import ReducedFFN, Size, ffn_report, ffn_width, receipt, source_of
from .sources import StatisticsSource, recipe_for
from .statistics import Statistics

__all__ = [
    "SAMPLED",
    "LayerFuser",
    "LayerReducer",
    "Method",
    "ReducedFFN",
    "Size",
    "Statistics",
    "StatisticsSource",
    "build_smaller",
    "calibrate_checkpoint",
    "calibrate_model",
    "calibrate_ntk",
    "calibration_batches",
    "check_finite",
    "check_reducible",
    "check_smaller",
    "check_whole",
    "cost_of_no_data",
    "enough_rows",
    "few_tokens",
    "ffn_report",
    "ffn_width",
    "first_rows",
    "fuse_model",
    "moment_bytes",
    "plan_fusion",
    "receipt",
    "recipe_for",
    "reduce_ffns",
    "reduction_bytes",
    "reduction_work",
    "source_of",
]
