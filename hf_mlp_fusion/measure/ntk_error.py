"""NTK error: how far fusion moved the training dynamics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch, progress_over
from .ntk import NTK, kernel_work, ntk
from .pairs import parameter_blocks, reduced_pairs

__all__ = ["KernelError", "NTKError", "compare_ntks", "ntk_error"]


@dataclass(frozen=True)
class KernelError:
    """How a kernel K~ differs from the original K.

    Args:
        relative: ‖K~ - K‖_F / ‖K‖_F.
        cosine: ⟨K~, K⟩ / (‖K~‖_F ‖K‖_F): 1 where only the size differs.
        size_ratio: ‖K~‖_F / ‖K‖_F: below 1, training starts slower than the original's.
    """

    relative: float
    cosine: float
    size_ratio: float


@dataclass(frozen=True)
class NTKError:
    """The error of a kernel.

    Args:
        kernel: `"adam"` or `"sgd"`.
        total: Of the kernel over all fused FFNs.
        ffns: Of each fused FFN's part.
    """

    kernel: str
    total: KernelError
    ffns: dict[str, KernelError]


def ntk_error(
    original: PreTrainedModel, fused: PreTrainedModel, batches: Iterable[Batch], kernel: str = "adam"
) -> NTKError:
    """Measures the error of the NTK over the fused FFNs' weights.

    Args:
        original: The model before fusion.
        fused: The same after fusion (or after a baseline that works FFN by FFN).
        batches: Batches of tokens; their rows are the samples.
        kernel: `"adam"` or `"sgd"`.
    """
    batches = list(batches)
    names = [before.name for before, _ in reduced_pairs(original, fused)]
    with progress_over(kernel_work(original, batches) + kernel_work(fused, batches), "NTK", leave=False):
        before = ntk(original, batches, kernel, parameter_blocks(original, names))
        return compare_ntks(before, ntk(fused, batches, kernel, parameter_blocks(fused, names)))


def compare_ntks(original: NTK, fused: NTK) -> NTKError:
    """Compares two kernels of the same samples.

    Args:
        original: The original's.
        fused: The fused model's. Blocks that the two do not share count in the total alone.
    """
    shared = [name for name in original.blocks if name in fused.blocks]
    ffns = {name: _error(original.blocks[name], fused.blocks[name]) for name in shared}
    return NTKError(original.kernel, _error(original.total, fused.total), ffns)


def _error(original: Tensor, fused: Tensor) -> KernelError:
    size, other = original.norm().item(), fused.norm().item()
    if not size or not other:  # an expert that no sample reached
        return KernelError(float(size != other), float(size == other), float(size == other))
    difference = (fused - original).norm().item()
    return KernelError(difference / size, (original * fused).sum().item() / (size * other), other / size)
