"""A model of a stock class as an ONNX graph, checked with onnxruntime."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..families import family_of

__all__ = ["check_onnx", "export_onnx"]

_TOLERANCE = 1e-4  # of the largest output; float32 leaves about 1e-6
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx(model: PreTrainedModel) -> None:
    """Refuses, before any work is done, what `export_onnx` cannot do.

    Args:
        model: The model, stock or fused.

    Raises:
        FusionConfigError: The packages of the `onnx` extra are not installed.
        UnsupportedModelError: The model is a mixture of experts or an encoder-decoder.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FusionConfigError(f"ONNX needs {', '.join(missing)}: run `pip install 'hf_mlp_fusion[onnx]'`")
    if family_of(model.config).router is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot become an ONNX graph: which experts run depends on the data, and "
            "torch.export does not follow such a loop. Export it without ONNX"
        )
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder; ONNX export takes one stack")


def export_onnx(model: PreTrainedModel, path: Path) -> float:
    """Writes the forward of a model as an ONNX graph in float32, and checks it on other shapes.

    Inputs are `input_ids`, `attention_mask` and, where the model tells token types apart, `token_type_ids`, int64,
    `[batch, sequence]`, both dynamic; outputs have the names that the model gives them. There is no cache: a language
    model gives the logits of all tokens.

    Args:
        model: A model of a stock class, an encoder or a decoder. It stays as it is.
        path: The file to write. Weights of more than 2 GB go into files beside it.

    Returns:
        Largest difference between an output of the graph and of the model, relative to the largest output.

    Raises:
        FusionConfigError: The packages of the `onnx` extra are not installed.
        UnsupportedModelError: torch cannot turn the model into a graph, or the graph computes something else.
    """
    check_onnx(model)
    import onnxruntime

    model = copy.deepcopy(model).float().cpu().eval()
    model.config.use_cache = False
    inputs = _inputs(model, batch=2, length=8)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    try:
        with torch.no_grad():
            outputs = list(model(**inputs).keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own: that it calls itself by deprecated names, and of axis names
            program: Any = torch.onnx.export(
                model,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes={name: {0: batch, 1: sequence} for name in inputs},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UnsupportedModelError(f"torch.onnx cannot export {type(model).__name__}: {reason}") from error
    program.save(path)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, length in ((1, 5), (3, 12)):
        inputs = _inputs(model, rows, length)
        found = session.run(outputs, {name: inputs[name].numpy() for name in inputs})
        with torch.no_grad():
            expected = model(**inputs)
        for name, array in zip(outputs, found, strict=True):
            largest = expected[name].abs().max().clamp(min=_TOLERANCE)
            off = float((torch.from_numpy(array) - expected[name]).abs().max() / largest)
            if not off <= _TOLERANCE:  # nor NaN
                raise UnsupportedModelError(
                    f"the ONNX graph of {type(model).__name__} is off by {off:.1e} in {name}: not written"
                )
            worst = max(worst, off)
    return worst


def _inputs(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Random tokens, the last two of the last row masked as padding is."""
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
        inputs["token_type_ids"][:, length // 2 :] = 1
    accepted = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in inputs.items() if name in accepted}
