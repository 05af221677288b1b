"""What training fused models asks for: layer-wise tuning on the original, and gradients for plain SGD."""

from .layerwise import LEARNING_RATE, LayerwiseTuningTrainer
from .sgd import scale_gradients_for_sgd
from .states import TARGETS
from .tune import TuningResult, tune_model

__all__ = [
    "LEARNING_RATE",
    "TARGETS",
    "LayerwiseTuningTrainer",
    "TuningResult",
    "scale_gradients_for_sgd",
    "tune_model",
]
