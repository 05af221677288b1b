"""After fusion: tuning on the original, layer by layer or on what it predicts, routers, and gradients for plain SGD.

May import `export`, `fusion`, `measure` and what is below.
"""

from .held_out import TuningResult
from .routers import freeze_routers, router_losses
from .sgd import scale_gradients_for_sgd
from .targets import LEARNING_RATE, TARGETS
from .trained import TRAINED
from .trainer import TuningTrainer
from .tune import tune_model

LayerwiseTuningTrainer = TuningTrainer
"""Its name from when all targets were layers."""

__all__ = [
    "LEARNING_RATE",
    "TARGETS",
    "TRAINED",
    "LayerwiseTuningTrainer",
    "TuningResult",
    "TuningTrainer",
    "freeze_routers",
    "router_losses",
    "scale_gradients_for_sgd",
    "tune_model",
]
