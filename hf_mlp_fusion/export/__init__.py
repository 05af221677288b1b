"""Out of fusion again: P folded into the weights, the plain stock model, ONNX.

May import `fusion`, `modeling` and what is below.
"""

from .folding import fold, unfold
from .plain import ExportReport, export_plain

__all__ = ["ExportReport", "export_plain", "fold", "unfold"]
