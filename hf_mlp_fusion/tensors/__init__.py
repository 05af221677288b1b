"""The mathematics, on bare tensors: clusterings, selections, refits, and what an FFN's weights are.

May import `errors`. Nothing here knows of models or files.
"""

from .allocation import allocate_widths
from .cluster_sizes import as_integers, check_cluster_sizes, check_kernel_scales, even_cluster_sizes
from .clustering import CLUSTERINGS, inertia
from .low_rank import LowRankLinear
from .moments import Moments, MomentSums
from .reduction import FFNWeights, Fusion, fuse_weights, select_units
from .refit import RIDGE, cholesky, ridge_refit
from .selection import Elimination, assign_units, eliminate

__all__ = [
    "CLUSTERINGS",
    "RIDGE",
    "Elimination",
    "FFNWeights",
    "Fusion",
    "LowRankLinear",
    "MomentSums",
    "Moments",
    "allocate_widths",
    "as_integers",
    "assign_units",
    "check_cluster_sizes",
    "check_kernel_scales",
    "cholesky",
    "eliminate",
    "even_cluster_sizes",
    "fuse_weights",
    "inertia",
    "ridge_refit",
    "select_units",
]
