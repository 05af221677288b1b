"""After fusion: layer-wise tuning on the original, routers, and gradients for plain SGD.

May import `export`, `fusion`, `measure` and what is below.
"""

from .layerwise import LEARNING_RATE, LayerwiseTuningTrainer
from .routers import freeze_routers, router_losses
from .sgd import scale_gradients_for_sgd
from .states import TARGETS
from .tune import TuningResult, tune_model

__all__ = [
    "LEARNING_RATE",
    "TARGETS",
    "LayerwiseTuningTrainer",
    "TuningResult",
    "freeze_routers",
    "router_losses",
    "scale_gradients_for_sgd",
    "tune_model",
]
