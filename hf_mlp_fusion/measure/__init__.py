"""Measures of what a fusion did to a model. A measure is one small file.

May import `data`, `modeling` and what is below.
"""

from .displacement import Displacement
from .divergence import Divergence, LogitDivergence, divergence
from .dynamics import Dynamics, dynamics
from .expert_load import ExpertLoad, expert_load
from .flops import flops
from .gradients import only_these_train
from .language import LanguageLoss, language_loss
from .latency import Latency, latencies, latency
from .memory import peak_memory
from .ntk import NTK, kernel_bytes, kernel_work, ntk
from .ntk_error import NTKError, compare_ntks, ntk_error
from .output_error import OutputError, output_error
from .pairs import parameter_blocks, reduced_ffns
from .sampled_answers import SampledAnswers
from .size import ModelSize, model_size
from .step import training_step

__all__ = [
    "NTK",
    "Displacement",
    "Divergence",
    "Dynamics",
    "ExpertLoad",
    "LanguageLoss",
    "Latency",
    "LogitDivergence",
    "ModelSize",
    "NTKError",
    "OutputError",
    "SampledAnswers",
    "compare_ntks",
    "divergence",
    "dynamics",
    "expert_load",
    "flops",
    "kernel_bytes",
    "kernel_work",
    "language_loss",
    "latencies",
    "latency",
    "model_size",
    "ntk",
    "ntk_error",
    "only_these_train",
    "output_error",
    "parameter_blocks",
    "peak_memory",
    "reduced_ffns",
    "training_step",
]
