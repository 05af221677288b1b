"""From a stock model to a fused one: the plan, the walk over its FFNs, calibration.

May import `measure`, `data`, `modeling` and what is below.
"""

from .calibrate import calibrate_model
from .calibration import SAMPLED, SAMPLES, calibration_batches, first_rows
from .driver import LayerReducer, Method, ReducedFFN, check_reducible, check_whole, reduce_ffns
from .fuse import fuse_model
from .kernel_size import calibrate_ntk
from .offloaded import calibrate_checkpoint
from .plan import check_smaller, plan_fusion
from .statistics import Statistics

__all__ = [
    "SAMPLED",
    "SAMPLES",
    "LayerReducer",
    "Method",
    "ReducedFFN",
    "Statistics",
    "calibrate_checkpoint",
    "calibrate_model",
    "calibrate_ntk",
    "calibration_batches",
    "check_reducible",
    "check_smaller",
    "check_whole",
    "first_rows",
    "fuse_model",
    "plan_fusion",
    "reduce_ffns",
]
