"""A model of a stock class as an ONNX graph, checked with onnxruntime."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..families import family_of
from .graph_inputs import free_axes, graph_inputs

__all__ = ["check_onnx", "export_onnx"]

_TOLERANCE = 1e-4  # of the largest output; float32 leaves about 1e-6
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx(model: PreTrainedModel) -> None:
    """Refuses, before any work is done, what `export_onnx` cannot do.

    Args:
        model: The model, stock or fused.

    Raises:
        FusionConfigError: The packages of the `onnx` extra are not installed.
        UnsupportedModelError: The model is a mixture of experts.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FusionConfigError(f"ONNX needs {', '.join(missing)}: run `pip install 'hf_mlp_fusion[onnx]'`")
    if family_of(model.config).router is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot become an ONNX graph: which experts run depends on the data, and "
            "torch.export does not follow such a loop. Export it without ONNX"
        )


def export_onnx(model: PreTrainedModel, path: Path) -> float:
    """Writes the forward of a model as an ONNX graph in float32, and checks it on other shapes.

    Inputs of a text model are `input_ids`, `attention_mask` and, where it tells token types apart, `token_type_ids`,
    int64, `[batch, sequence]`, both dynamic, and `decoder_input_ids` of an encoder-decoder; those of other models are
    in `hf_mlp_fusion.export.graph_inputs`. Outputs have the names that the model gives them. There is no cache: a
    language model gives the logits of all tokens.

    Args:
        model: A model of a stock class. It stays as it is.
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
    for module in model.modules():
        if isinstance(module, PreTrainedModel):  # a decoder may have a config of its own
            module.config.use_cache = False
    inputs = graph_inputs(model, batch=2, length=8)
    try:
        with torch.no_grad():
            made = model(**inputs)
        outputs = [name for name in made if isinstance(made[name], Tensor)]
        if len(outputs) < len(made):
            raise TypeError(f"not all of its outputs are tensors, but {', '.join(outputs)}")
        program = _traced(model, inputs, outputs)
    except Exception as error:
        reason = _first_line(error.__cause__ or error)
        raise UnsupportedModelError(f"torch.onnx cannot export {type(model).__name__}: {reason}") from error
    program.save(path)

    worst = 0.0
    for rows, length in ((1, 5), (3, 12)):
        inputs = graph_inputs(model, rows, length)
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = session.run(outputs, {name: inputs[name].numpy() for name in inputs})
        except Exception as error:  # onnxruntime's own are no subclasses of one
            raise UnsupportedModelError(
                f"onnxruntime cannot run the graph of {type(model).__name__}: {_first_line(error)}"
            ) from error
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


def _traced(model: PreTrainedModel, inputs: dict[str, Tensor], outputs: list[str]) -> Any:
    """The graph of a model; where its attention cannot be traced (T5's), that of the same in plain products."""
    dims = {axis: torch.export.Dim(axis) for name in inputs for axis in free_axes(name)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own: that it calls itself by deprecated names, and of axis names
            return torch.onnx.export(
                model,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes={name: {i: dims[axis] for i, axis in enumerate(free_axes(name))} for name in inputs},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError:
        if model.config._attn_implementation == "eager":
            raise
        model.set_attn_implementation("eager")
        return _traced(model, inputs, outputs)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
