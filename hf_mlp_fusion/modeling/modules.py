"""The modules of a fused FFN: `ClusterScaling` (P) and `FusedMLP`, and the swap of a stock FFN for a narrow one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BrokenCheckpointError, FusionWarning
from ..tensors import as_integers, check_cluster_sizes, check_kernel_scales, even_cluster_sizes
from .unit_scaling import UnitScaling

__all__ = [
    "ClusterScaling",
    "FusedMLP",
    "View",
    "ViewedMLP",
    "fused_mlp_class",
    "made_class",
    "stock_mlp_class",
    "viewed_mlp_class",
]


class ClusterScaling(UnitScaling, nn.Module):
    """The scaling matrix P behind an FFN's activation: σ'(z) = P ⊙ σ(z) (arXiv 2307.08941, eq. 6).

    The cluster sizes are an int32 buffer: saved with the weights, never trained or decayed, and exact in every dtype
    the model is cast to (bfloat16 cannot hold 257). P is a power of them, 1 in the paper.

    Args:
        activation: The stock activation module.
        width: Units of the fused FFN, k.
        original_width: Units of the FFN before fusion, I.

    Attributes:
        known_sizes: The cluster sizes when they were loaded, on the CPU; None in a model on the meta device.
        kernel_scales: s1, s2 and s3, `[3]` float32, and behind them the power where it is not 1, for the state dict;
            not there where all are 1.

    Shape:
        Input and output `[..., k]`; `cluster_sizes` `[k]`, int32, positive, summing to I.
    """

    kernel_scales: Tensor
    _power = 1.0  # also of modules that were pickled before there was another

    def __init__(self, activation: nn.Module, width: int, original_width: int) -> None:
        super().__init__()
        self.activation = activation
        self.original_width = original_width
        self.inner_scale = 1.0
        self.outer_scale = 1.0
        self.value_scale = 1.0
        self.known_sizes: Tensor | None = None
        self.register_buffer("cluster_sizes", even_cluster_sizes(width, original_width))

    @UnitScaling.scales.setter  # type: ignore[attr-defined, untyped-decorator]
    def scales(self, scales: Sequence[Any]) -> None:
        """Sets s1 and s2, and s3 where there is one."""
        UnitScaling.scales.fset(self, scales)  # type: ignore[attr-defined]
        self.keep_scales()

    @property
    def power(self) -> float:
        """Power of the cluster sizes that P is; can be set, which leaves the weights as they are."""
        return self._power

    @power.setter
    def power(self, power: float) -> None:
        """Sets it."""
        self._power = power
        self.keep_scales()

    @property
    def every_scale(self) -> Sequence[Any]:
        """s1, s2 and s3, also where they are 1, and behind them the power where it is not: `kernel_scales`."""
        scales = (self.inner_scale, self.outer_scale, self.value_scale)
        return scales if self.power == 1.0 else (*scales, self.power)

    @property
    def kept_scales(self) -> tuple[Any, ...] | None:
        """What the config section keeps of its scales; None where there is nothing to keep."""
        return None if self.scales == (1.0, 1.0) else self.scales

    def keep_scales(self) -> None:
        """Keeps scales and power in the state dict, whose weights mean nothing without: `kernel_scales`, float32."""
        if self.kept_scales is None and self.power == 1.0:
            self._buffers.pop("kernel_scales", None)
            return
        values = torch.tensor(self.every_scale, dtype=torch.float32, device=self.cluster_sizes.device)
        self.register_buffer("kernel_scales", values)

    def forward(self, hidden: Tensor) -> Tensor:
        """Applies the activation and P; the result has the dtype of the activation's."""
        hidden = self.activation(hidden if self.inner_scale == 1.0 else hidden * self.inner_scale)
        return hidden if self.is_identity else hidden * self.factor.to(hidden.dtype)

    def extra_repr(self) -> str:
        return f"{self.original_width} -> {self.cluster_sizes.shape[-1]} units"

    def remember(self) -> None:
        """Notes P as it is now: P never changes, so that whatever changes it can be undone."""
        sizes = self.cluster_sizes
        self.known_sizes = sizes.detach().cpu().clone() if _is_plain(sizes) else None

    def _apply(self, fn, *args):  # type: ignore[no-untyped-def]
        # nn.Module's way to move and cast: `model.type(torch.bfloat16)` casts integers too.
        before = self.cluster_sizes
        super()._apply(fn, *args)
        if self.cluster_sizes.is_floating_point() and not before.is_floating_point():
            self.cluster_sizes = before.to(self.cluster_sizes.device)
        self.keep_scales()  # not in half precision
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):  # type: ignore[no-untyped-def]
        # nn.Module's hook for `load_state_dict`, which Trainer uses when it resumes: refuse what is no P.
        name = f"{prefix}cluster_sizes"
        sizes = state_dict.get(name)
        if sizes is not None and sizes.shape == self.cluster_sizes.shape and _is_plain(sizes):
            state_dict[name] = sizes = as_integers(sizes)  # a mean of equal P is exact, and floats
            check_cluster_sizes(sizes, self.original_width, name)
        scales = state_dict.get(f"{prefix}kernel_scales")
        shapes = [(*self.cluster_sizes.shape[:-1], count) for count in (3, 4)]
        known = scales is not None and scales.shape in shapes and _is_plain(scales)
        if known:
            check_kernel_scales(scales, f"{prefix}kernel_scales")
            if "kernel_scales" not in self._buffers or self.kernel_scales.shape != scales.shape:
                # Of another fusion, whose scales come along.
                self.register_buffer("kernel_scales", torch.ones_like(scales, device=self.cluster_sizes.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if sizes is not None:
            self.remember()
        if known:
            self.scales = scales[..., :3].float().tolist()
            self.power = round(float(scales.flatten()[3]), 6) if scales.shape[-1] == 4 else 1.0

    def _save_to_state_dict(self, destination, prefix, keep_vars):  # type: ignore[no-untyped-def]
        # nn.Module's hook for `state_dict`, which all ways to save go through: no broken P gets out.
        if _is_plain(self.cluster_sizes):
            self._undo_changes(f"{prefix}cluster_sizes")
            self.keep_scales()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _undo_changes(self, name: str) -> None:
        sizes = as_integers(self.cluster_sizes)
        try:
            check_cluster_sizes(sizes, self.original_width, name)
        except BrokenCheckpointError:
            if self.known_sizes is None or self.known_sizes.shape != sizes.shape:
                raise
            warnings.warn(
                f"{name} was changed by something that takes buffers for averages (an EMA with buffers, a mean of "
                "models): it is what it was when it was loaded again",
                FusionWarning,
                stacklevel=2,
            )
            sizes = self.known_sizes.to(sizes.device)
        if sizes is not self.cluster_sizes:
            self.cluster_sizes = sizes


def _is_plain(sizes: Tensor) -> bool:
    """Whether a tensor's values are there to be read: not on the meta device, not while torch traces."""
    return type(sizes) in (Tensor, nn.Parameter) and not sizes.is_meta


class FusedMLP(nn.Module):
    """A fused FFN: a stock FFN module with fewer hidden units and P behind its activation.

    It is never built by itself: each stock FFN class has a subclass of itself and of `FusedMLP` (`fused_mlp_class`),
    so the stock forward runs unchanged and `isinstance` finds both. Where the stock FFN is spread over several modules
    (BERT), `FusedMLP` is the one that holds the activation.

    Example:
        >>> [ffn.width for ffn in fused.modules() if isinstance(ffn, FusedMLP)]  # doctest: +SKIP
        [384, 384, 384, 384, 384, 384, 384, 384]

    Attributes:
        stock_class: The stock class that its class was made of.
    """

    stock_class: type[nn.Module]

    @property
    def scaling(self) -> ClusterScaling:
        """The module that holds P."""
        return next(child for child in self._modules.values() if isinstance(child, ClusterScaling))

    @property
    def cluster_sizes(self) -> Tensor:
        """How many units each unit stands for, `[k]` (of a stack `[experts, k]`), int32; P is their power."""
        return self.scaling.cluster_sizes

    @property
    def width(self) -> int:
        """Hidden units, k."""
        return self.cluster_sizes.shape[-1]

    @property
    def original_width(self) -> int:
        """Hidden units before fusion, I."""
        return self.scaling.original_width

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time; pickle and deepcopy find it again by its stock class.
        return _empty_fused_mlp, (stock_mlp_class(type(self)),), self.__dict__


class ViewedMLP(FusedMLP):
    """A fused FFN whose stock forward calls its activation as a function, so that P has no module to stand behind.

    It is the module that holds the down projection. Its stock forward runs on a view of it, in which P stands before
    that projection, and not in it: whatever wraps the projection (an adapter) sees what P has multiplied.

    Attributes:
        scaled_child: Name of the child whose input P multiplies.
    """

    scaled_child: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock class's."""

        def scaled(hidden: Tensor) -> Tensor:
            return getattr(self, self.scaled_child)(self.scaling(hidden))

        return stock_mlp_class(type(self)).forward(View(self, {self.scaled_child: scaled}), *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty_viewed_mlp, (stock_mlp_class(type(self)),), self.__dict__


class View:
    """A module's attributes, some replaced: what a stock forward can be run on."""

    def __init__(self, module: nn.Module, replaced: dict[str, Any]) -> None:
        self.__dict__.update(replaced, _viewed=module)
        if not torch.compiler.is_compiling():  # to look all of them up one by one takes longer than a small kernel
            self.__dict__ = module.__dict__ | module._parameters | self.__dict__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)


_FUSED_MLPS: dict[tuple[type[FusedMLP], type[nn.Module]], type[FusedMLP]] = {}


def fused_mlp_class(stock: type[nn.Module]) -> type[FusedMLP]:
    """Returns the subclass of `FusedMLP` and a stock FFN class, always the same one.

    Args:
        stock: Class of the module that holds the FFN's activation, such as `GPT2MLP`.
    """
    return made_class(FusedMLP, stock)


def viewed_mlp_class(stock: type[nn.Module]) -> type[FusedMLP]:
    """Returns the subclass of `ViewedMLP` and a stock class, always the same one.

    Args:
        stock: Class of the module that holds the FFN's down projection, such as `EsmOutput`.
    """
    return made_class(ViewedMLP, stock)


def made_class(kind: type[FusedMLP], stock: type[nn.Module]) -> type[FusedMLP]:
    """Returns the subclass of a kind of fused FFN and a stock class, always the same one.

    Args:
        kind: `FusedMLP` or a subclass of it.
        stock: The stock class.
    """
    if (kind, stock) not in _FUSED_MLPS:
        members = {"__doc__": f"`{stock.__name__}`, fused.", "__module__": __name__, "stock_class": stock}
        _FUSED_MLPS[kind, stock] = type(f"Fused{stock.__name__}", (kind, stock), members)
    return _FUSED_MLPS[kind, stock]


def stock_mlp_class(fused: type[FusedMLP]) -> type[nn.Module]:
    """Returns the stock FFN class that `made_class` made a class from.

    Args:
        fused: What it returned, or a subclass of that, such as torch makes of a module with parametrizations.
    """
    return fused.stock_class


def _empty_fused_mlp(stock: type[nn.Module]) -> FusedMLP:
    fused = fused_mlp_class(stock)
    return fused.__new__(fused)


def _empty_viewed_mlp(stock: type[nn.Module]) -> FusedMLP:
    viewed = viewed_mlp_class(stock)
    return viewed.__new__(viewed)
