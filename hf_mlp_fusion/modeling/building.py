"""Building a model of one class from the tensors and the config of another."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..errors import UnsupportedModelError
from ..hub import without_stub

__all__ = ["check_built", "convert_config", "empty_model", "rebuild"]


def rebuild(
    model: PreTrainedModel,
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> Any:
    """Builds a model from tensors, with the device, mode and generation config of another.

    The public `from_pretrained` does it: it ties weights, fills unsaved buffers and hooks up recorded outputs. Parts
    that are None in the other model (a pooler, say) are None in this one; tensors keep dtypes of their own.

    Args:
        model: The other model.
        cls: Class of the model to build.
        config: Its config.
        state: Its tensors, by name; it takes them over.
        dtype: Its dtype, that of the other model if not given.
    """
    blank = empty_model(cls, config)
    absent = [path for path, _ in blank.named_modules() if _is_none(model, path)]
    absent = [path for path in absent if path.rpartition(".")[0] not in absent]
    below = tuple(f"{path}." for path in absent)
    fillers = {name: torch.zeros(t.shape) for name, t in blank.state_dict().items() if name.startswith(below)}
    kwargs: dict[str, Any] = {}
    if cls._can_set_experts_implementation():
        kwargs["experts_implementation"] = model.config._experts_implementation
    with _without_bars():
        built: Any = cls.from_pretrained(
            None,
            config=config,
            state_dict={**state, **fillers},
            dtype=dtype or model.dtype,
            device_map=None if model.device.type == "cpu" else {"": model.device},
            attn_implementation=model.config._attn_implementation,
            **kwargs,
        )
    for path in absent:
        parent, _, child = path.rpartition(".")
        setattr(built.get_submodule(parent), child, None)
    if dtype is None:
        for name, tensor in built.state_dict(keep_vars=True).items():
            if name in state and tensor.dtype != state[name].dtype:
                tensor.data = state[name].to(tensor.device)
    built.train(model.training)
    if getattr(model, "generation_config", None) is not None:
        built.generation_config = model.generation_config
    return built


def check_built(model: PreTrainedModel) -> None:
    """Checks that a model is what its class builds from its config: what is not would be lost, or load as garbage.

    Parts that are None, as poolers often are, are no fault.

    Args:
        model: The model, stock or fused.

    Raises:
        UnsupportedModelError: It is not, and what differs.
    """
    cls = type(model).__name__
    try:
        blank = empty_model(type(model), model.config)
    except Exception as error:  # an own class may raise anything
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"{cls} cannot be built from its config alone ({fault:.200}), as loading does it: let its __init__ take a "
            "config, and keep what else it needs there"
        ) from error
    mend = "change the config as well; or fuse the model as it was loaded, and change the fused one"
    own, wanted = dict(model.named_modules()), dict(blank.named_modules())
    for path, module in own.items():
        if path not in wanted:
            raise UnsupportedModelError(f"{path} ({type(module).__name__}) is none of the parts of a {cls}: {mend}")
        if _kind(module) != _kind(wanted[path]):
            raise UnsupportedModelError(
                f"{path} is a {type(module).__name__}, where {cls} has a {type(wanted[path]).__name__}: {mend}"
            )
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):  # accelerate's are put on again
            raise UnsupportedModelError(f"the forward of {path or cls} was replaced: fuse the model before that")
    for path in wanted:
        if path not in own and not _is_none(model, path):
            raise UnsupportedModelError(f"{path} is missing, and the config says that {cls} has it: {mend}")
    below = tuple(f"{path}." for path in wanted if path not in own)
    shapes = {name: tensor.shape for name, tensor in blank.state_dict().items() if not name.startswith(below)}
    found = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for known in (shapes, found):  # scales come with a state dict, and go into the config when it is saved
        for name in [name for name in known if name.endswith(".kernel_scales")]:
            del known[name]
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise UnsupportedModelError(
                f"{name} is {_shown(found.get(name))}, and {_shown(shapes.get(name))} by the config of {cls}: {mend}"
            )
    for names in _tied(blank) - _tied(model):
        if all(name in found for name in names):
            raise UnsupportedModelError(
                f"{' and '.join(sorted(names))} are one tensor by the config, and not in the model: set "
                "config.tie_word_embeddings to False"
            )


def empty_model(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without weights, on the meta device.

    Args:
        cls: Its class.
        config: Its config.
    """
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Shows no "Loading weights" where no file is loaded."""
    before = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **kwargs | {"disable": True})
    )
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def _kind(module: torch.nn.Module) -> tuple[str, str]:
    """The name of a module's class: torch makes a class of its own for each module with parametrizations."""
    return type(module).__module__, type(module).__qualname__


def _is_none(model: PreTrainedModel, path: str) -> bool:
    """Whether a part of a model is left out: the part itself is None, or one above it."""
    module: Any = model
    for name in path.split("."):
        if (module := getattr(module, name, model)) in (None, model):
            return module is None
    return False


def _shown(shape: torch.Size | None) -> str:
    return "not there" if shape is None else str(list(shape))


def _tied(model: PreTrainedModel) -> set[frozenset[str]]:
    """Names of parameters that are one tensor."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def convert_config(config: PreTrainedConfig, cls: type[PreTrainedConfig], changes: Mapping[str, Any]) -> Any:
    """The same fields in a config of another class.

    Args:
        config: The config of a stock or fused model.
        cls: The fused or stock config class of the same family.
        changes: Fields that get other values.
    """
    values = without_stub(config.to_dict())  # it leads to the fused classes, and a fused folder gets its own
    # No quantization either: the tensors that a model is built from are floats.
    for name in ("model_type", "transformers_version", "architectures", "mlp_fusion", "quantization_config"):
        values.pop(name, None)
    return cls.from_dict(values | dict(changes))
