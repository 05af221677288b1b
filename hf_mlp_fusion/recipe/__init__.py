"""What to fuse (`FusionConfig`), and what was fused (the config section and the receipt).

May import `files`. `hf-mlp-fusion --help` passes through here, so it loads no torch.
"""

from .config import CLUSTERINGS, METRICS, NTKS, REFITS, SELECTIONS, TARGETS, FusionConfig, check_recipe
from .layers import select_layers
from .report import REPORT_NAME, FFNReport, FusionReport, SkippedFFN, TuningReport
from .section import FFNWidth, FusionSection

__all__ = [
    "CLUSTERINGS",
    "METRICS",
    "NTKS",
    "REFITS",
    "REPORT_NAME",
    "SELECTIONS",
    "TARGETS",
    "FFNReport",
    "FFNWidth",
    "FusionConfig",
    "FusionReport",
    "FusionSection",
    "SkippedFFN",
    "TuningReport",
    "check_recipe",
    "select_layers",
]
