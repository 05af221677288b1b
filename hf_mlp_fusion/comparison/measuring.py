"""The comparison itself: each method once, measured, and written down as soon as it is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from .. import __version__
from ..baselines import METHODS, reduce_model
from ..baselines.remaining import remaining_ffns
from ..data import LANGUAGE_OBJECTIVES, Batch, load_tokenizer, make_batches, objective_of, split_texts
from ..errors import DataError, FusionConfigError, UnsupportedModelError, check_choice
from ..fusion import calibration_batches, first_rows, plan_fusion
from ..measure import (
    NTK,
    compare_ntks,
    expert_load,
    flops,
    language_loss,
    latencies,
    model_size,
    ntk,
    output_error,
    parameter_blocks,
    peak_memory,
    reduced_ffns,
)
from ..modeling.find import find_ffns
from ..modeling.loading import load_stock_model, load_whole
from ..recipe import FusionConfig
from .results import add_row, read_kernel, read_rows, write_kernel
from .row import Costs, Row

__all__ = ["HEADS", "ORIGINAL", "Subject", "check_methods", "compare", "load_subject"]

ORIGINAL = "original"
HEADS = ("own", "classifier")
_LOSS_ROWS = 256  # at most: windows of 128 tokens, so some 33,000 tokens
_HELD_OUT = 0.5  # of the texts: measured on. The others calibrate.


@dataclass(frozen=True)
class Subject:
    """What is compared on: a model and texts.

    Args:
        model: The original model.
        calibration: Rows for the methods that use data; none of them is measured on.
        batches: Rows for errors and kernels.
        loss_batches: Rows for the loss; none where the model has no language-model head.
        about: What a table says of them.
    """

    model: PreTrainedModel
    calibration: list[Batch]
    batches: list[Batch]
    loss_batches: list[Batch]
    about: dict[str, Any]


def load_subject(
    name: str,
    texts: Sequence[str],
    *,
    data: str = "",
    head: str = "own",
    samples: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Subject:
    """Loads a model and makes batches of texts: of one half, told by a hash, to measure on, of the other to calibrate.

    Args:
        name: Folder or Hub id of a stock model.
        texts: The texts.
        data: What the texts are called in tables.
        head: `"own"`, the head that the model was saved with, or `"classifier"`, a new one with random weights, from
            which fine-tuning starts.
        samples: Rows for errors and kernels.
        seed: Seed of a new head and of what is masked.
        device: Where to run.

    Raises:
        FusionConfigError: There is no such model, or no such head.
        DataError: It has no tokenizer, or the texts give no row.
    """
    check_choice("head", head, HEADS)
    model = load_stock_model(name, dtype="float32", device=device)
    if head == "classifier":
        torch.manual_seed(seed)
        model = load_whole(AutoModelForSequenceClassification, name, dtype="float32", new_head=True, device=device)
    tokenizer = load_tokenizer(name)
    speaks = objective_of(model) in LANGUAGE_OBJECTIVES
    rows = max(samples, _LOSS_ROWS) if speaks else samples
    calibration, held_out = split_texts(texts, _HELD_OUT)
    batches = make_batches(model, tokenizer, held_out or texts, samples=rows, seed=seed)
    return Subject(
        model.eval(),
        calibration_batches(model, calibration, tokenizer) if calibration else [],
        first_rows(model, batches, samples),
        batches if speaks else [],
        {
            "model": name,
            "class": type(model).__name__,
            "fingerprint": _fingerprint(model),
            "data": data,
            "texts": hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest(),
            "samples": samples,
            "seed": seed,
            "device": _device_name(model),
            "threads": torch.get_num_threads(),
            "versions": {
                "hf_mlp_fusion": __version__,
                "transformers": transformers.__version__,
                "torch": str(torch.__version__),
            },
        },
    )


def compare(subject: Subject, config: FusionConfig, methods: Sequence[str], folder: Path) -> Iterator[Row]:
    """Measures the original and each method, and writes every row into a folder as soon as it is finished.

    Rows that the folder holds already are not measured again. Stopping in between loses the row at work, no more.

    Args:
        subject: The model and the texts.
        config: The recipe.
        methods: Keys of `METHODS`.
        folder: Where rows and kernels are kept.

    Yields:
        A row a method, the original's first.

    Raises:
        FusionConfigError: There is no such method, or the recipe fits no FFN of the model.
    """
    check_methods(methods)
    names = [ffn.name for ffn, _ in plan_fusion(subject.model, config).widths]
    about = subject.about | {"recipe": config.to_dict(), "fused": len(names)}
    comparison = _digest(about)
    finished = {row.key: row for row in read_rows(folder)}
    key = _digest([comparison, ORIGINAL])
    stored = read_kernel(folder, key)
    if key in finished and stored is not None:
        kernel = NTK("adam", {name: torch.from_numpy(block) for name, block in stored.items()})
    else:
        kernel = _kernel(subject, subject.model, names)
        write_kernel(folder, key, kernel)
        finished[key] = _measured(subject, subject.model, Row(key, comparison, about, ORIGINAL))
        add_row(folder, finished[key])
    yield finished[key]
    for method in dict.fromkeys(methods):
        key = _digest([comparison, method])
        if key not in finished:
            row = _row(subject, config, Row(key, comparison, about, method), kernel, folder)
            add_row(folder, row)
            finished[key] = row
        yield finished[key]


def check_methods(methods: Sequence[str]) -> None:
    """Checks the names of methods, which can be done before a model is loaded.

    Raises:
        FusionConfigError: There is no such method.
    """
    for method in methods:
        if method not in METHODS:
            raise FusionConfigError(f"there is no method {method!r}; the methods are {', '.join(METHODS)}")


def _row(subject: Subject, config: FusionConfig, row: Row, original: NTK, folder: Path) -> Row:
    started = time.perf_counter()
    try:
        model = reduce_model(subject.model, config, row.method, calibration=subject.calibration or None)
    except (DataError, FusionConfigError, UnsupportedModelError) as error:
        return dataclasses.replace(row, refused=str(error))
    seconds = time.perf_counter() - started
    outputs = output_error(subject.model, model, subject.batches)
    names = reduced_ffns(model) or remaining_ffns(subject.model, model, config)
    kernel = _kernel(subject, model, names)
    write_kernel(folder, row.key, kernel)
    moved = compare_ntks(original, kernel)
    row = dataclasses.replace(
        row,
        seconds=round(seconds, 3),
        output_errors={name: _number(value) for name, value in outputs.ffns.items()},
        output_error=_number(outputs.mean),
        hidden_error=_number(outputs.hidden_state),
        ntk_errors={name: item.relative for name, item in moved.ffns.items() if reduced_ffns(model)},
        ntk_error=moved.total.relative,
        ntk_cosine=moved.total.cosine,
        ntk_size=moved.total.size_ratio,
        clusters={
            ffn.name: sorted(scaling.cluster_sizes.tolist(), reverse=True)
            for ffn in find_ffns(model)
            if (scaling := ffn.scaling) is not None
        },
    )
    return _measured(subject, model, row)


def _measured(subject: Subject, model: PreTrainedModel, row: Row) -> Row:
    """Adds what can be measured of a model by itself."""
    size = model_size(model)
    loss = language_loss(model, subject.loss_batches) if subject.loss_batches else None
    batch = subject.batches[0]
    costs = []
    for training in (False, True):
        *original, taken = latencies(list(dict.fromkeys((subject.model, model))), batch, training=training)
        operations = flops(model, batch, training=training)
        memory = peak_memory(model, batch, training=training)
        own = Costs(taken.median, taken.spread, operations, memory)
        for other in original:
            speedup = other.median / taken.median
            own = dataclasses.replace(own, speedup=speedup, original=other.median, original_spread=other.spread)
        costs.append(own)
    return dataclasses.replace(
        row,
        parameters=size.parameters,
        ffn_parameters=size.ffn_parameters,
        bytes=size.bytes,
        objective=None if loss is None else loss.objective,
        loss=None if loss is None else loss.loss,
        perplexity=None if loss is None else loss.perplexity,
        expert_load={name: list(item.tokens) for name, item in expert_load(model, subject.batches).items()},
        forward=costs[0],
        training=costs[1],
    )


def _kernel(subject: Subject, model: PreTrainedModel, names: list[str]) -> NTK:
    return ntk(model, subject.batches, parameters=parameter_blocks(model, names))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _fingerprint(model: PreTrainedModel) -> str:
    """A hash of class, config and weights: the same model, wherever it lies."""
    state = hashlib.blake2b(type(model).__name__.encode(), digest_size=8)
    config = model.config.to_dict()
    state.update(json.dumps({name: config[name] for name in sorted(config) if name[0] != "_"}, default=str).encode())
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _device_name(model: PreTrainedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
