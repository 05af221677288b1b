"""What an error in the output of an FFN costs: the metric of the loss, by one backward pass over calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..data import (
    Batch,
    Processes,
    Progress,
    counted_tokens,
    cut_padding,
    evaluating,
    fitting_pieces,
    forward_work,
    on_device,
    row_count,
    rows_of,
    run_on,
    token_count,
)
from ..measure import SampledAnswers, only_these_train
from ..modeling.ffn import FFN
from ..tensors import cholesky

__all__ = [
    "METRIC_TOKENS",
    "MetricSum",
    "loss_metrics",
    "metric_bytes",
    "metric_place",
    "metric_rows",
    "metric_work",
    "watch_metric",
]

METRIC_TOKENS = 8192
"""Tokens that the metric of the loss is taken on, about. It has d² numbers an FFN, of which the moments have I²; eight
times as many changed no perplexity by more than a thousandth (docs/quality.md)."""

_DAMPING = 1e-3  # of its mean diagonal: an error that the tokens say nothing of is not free


def loss_metrics(
    model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch], seed: int
) -> dict[str, Tensor]:
    """The Fisher metric of the outputs of FFNs: how many nats a small error costs, in second order.

    G = E[g gᵀ] over tokens, g the gradient of the log-likelihood of answers drawn from the model's own: an error e in
    the output of an FFN raises the loss of a token by about eᵀ G e / 2. So errors of different FFNs are in one unit.
    The experts of a layer share one, of what reaches the layer.

    Args:
        model: The model, before anything in it was fused.
        ffns: The FFNs.
        batches: Calibration data.
        seed: Seed of the answers.

    Returns:
        By FFN name a factor L of it, `[d, d]`, float32, G = L Lᵀ.
    """
    sums: dict[str, MetricSum] = {}
    exits: dict[nn.Module, FFN] = {ffn.exit: ffn for ffn in ffns}  # a stack of experts has one
    running: dict[str, Batch] = {}
    generator = torch.Generator(model.device).manual_seed(seed)
    hooks = [watch_metric(ffn, sums.setdefault(metric_place(ffn), MetricSum()), running) for ffn in exits.values()]
    rows = metric_rows(batches)
    mend = "fewer or shorter calibration rows shorten it"
    try:
        with (
            evaluating(model),
            only_these_train(model, []),
            Progress(sum(map(row_count, rows)), "metric", work=metric_work(model, batches), shorter=mend) as progress,
        ):
            with run_on("calibration batch 1"):
                answers = SampledAnswers(model, on_device(rows[0], model))
            pieces = fitting_pieces(model, cut_padding(ffns, rows), gradients=True, logits=answers.whole)
            for number, batch in enumerate(pieces, 1):
                batch = on_device(batch, model)
                running["batch"] = batch
                with run_on(f"calibration batch {number}"):
                    answers.backward(batch, generator)
                progress.update(row_count(batch))
    finally:
        for hook in hooks:
            hook.remove()
    factors = {place: item.factor() for place, item in sums.items()}
    return {ffn.name: factor for ffn in ffns if (factor := factors[metric_place(ffn)]) is not None}


def metric_rows(batches: Sequence[Batch]) -> list[Batch]:
    """Rows spread over batches, as many as the metric takes.

    Args:
        batches: Calibration data.
    """
    share = min(1.0, METRIC_TOKENS / token_count(batches))
    chosen: list[Batch] = []
    seen = taken = 0
    for batch in batches:
        seen += row_count(batch)
        if count := math.ceil(seen * share) - taken:
            chosen.append(rows_of(batch, 0, count))
            taken += count
    return chosen


def metric_work(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """About how many operations `loss_metrics` takes."""
    return 2 * forward_work(model, metric_rows(batches))


def metric_bytes(ffns: Iterable[FFN]) -> int:
    """Bytes of the metrics of FFNs.

    Args:
        ffns: The FFNs.
    """
    return 4 * sum({metric_place(ffn): ffn.output_size**2 for ffn in ffns}.values())


def metric_place(ffn: FFN) -> str:
    """What FFNs have in common that share a metric: the layer, of experts."""
    return ffn.name if ffn.expert is None else f"{ffn.stack}.{ffn.layer}.experts"


class MetricSum:
    """The sum of g gᵀ over tokens, and how many there were."""

    def __init__(self) -> None:
        self.tokens = 0
        self.total: Tensor | None = None

    def add(self, gradients: Tensor) -> None:
        """Adds tokens.

        Args:
            gradients: `[n, d]`.
        """
        wide = gradients.float()
        self.tokens += len(wide)
        self.total = wide.T @ wide if self.total is None else self.total.addmm_(wide.T, wide)

    def join(self, processes: Processes, size: int) -> None:
        """Takes the tokens of all processes together.

        Args:
            processes: The processes.
            size: Size of the output, d.
        """
        total = torch.zeros(size, size, device=processes.device) if self.total is None else self.total
        self.total, count = processes.summed([total, torch.tensor(float(self.tokens), device=processes.device)])
        self.tokens = int(count)

    def factor(self) -> Tensor | None:
        """The lower factor of their mean; None where no gradient arrived."""
        if self.total is None or not bool(self.total.any()):
            return None
        return cholesky(self.total / self.tokens, _DAMPING).float()


def watch_metric(ffn: FFN, total: MetricSum, running: Mapping[str, Batch]) -> RemovableHandle:
    """A hook that adds the gradients of an FFN's output to its metric, where a forward is one for a backward.

    Args:
        ffn: The FFN, or one expert of a stack for all.
        total: The sum.
        running: The batch that runs, as `"batch"`.
    """

    def see(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing below is asked for: the backward ends here
            output = output.requires_grad_().clone()

        def arrive(gradient: Tensor) -> None:
            gradient = gradient.detach()
            mask = counted_tokens(ffn, running["batch"], gradient)
            total.add(gradient.flatten(0, -2) if mask is None else gradient[mask])

        output.register_hook(arrive)
        return output

    return ffn.exit.register_forward_hook(see)
