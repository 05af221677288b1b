"""A calibration that goes through the layers of a model once, and back for the metric of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    Batch,
    Processes,
    Progress,
    cut_padding,
    evaluating,
    fitting_pieces,
    objective_of,
    on_device,
    row_count,
    run_on,
    token_count,
)
from ..files import check_disk
from ..measure import SampledAnswers, only_these_train
from ..modeling.find import find_ffns
from ..modeling.offloading import LayerLoader
from .calibrate import StatisticsSums
from .calibration import hold_out
from .layer_chain import LayerChain
from .layer_files import LayerFiles, Piece
from .layer_fuser import moment_bytes
from .loss_metric import MetricSum, metric_bytes, metric_place, metric_rows, watch_metric
from .statistics import Statistics
from .watching import Running

__all__ = ["LayerByLayer"]


class LayerByLayer:
    """A calibration of a model whose layers are a chain.

    Args:
        model: The model, from `load_offloaded_model`.
        layers: Its layers, by name.
        batches: All calibration data.
        statistics: Where statistics go.
        work: Where what layers return goes.
        stored: Bytes of the checkpoint.
        processes: Those that share the rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[str],
        batches: Sequence[Batch],
        statistics: Statistics,
        work: Path,
        stored: int,
        processes: Processes,
    ) -> None:
        self.model, self.layers, self.statistics, self.processes = model, list(layers), statistics, processes
        every = list(find_ffns(model))
        self.ffns = [[ffn for ffn in every if f"{ffn.full_name}.".startswith(f"{name}.")] for name in layers]
        rows, held_out = hold_out(batches)
        wanted = statistics.header.metric == "loss"
        metric = metric_rows(rows) if wanted else []
        self.files = LayerFiles(work)
        if processes.first and not statistics.header.ffns:
            self.files.clear()
        processes.wait()
        self.pieces: dict[str, list[Piece]] = {}
        whole = objective_of(model) not in LANGUAGE_OBJECTIVES
        for kind, data in (("rows", rows), ("held_out", held_out), ("metric", metric)):
            running = Running()
            cut = cut_padding(every, running.numbered(data))
            fitting = fitting_pieces(model, cut, gradients=kind == "metric", logits=kind == "metric" and whole)
            made = [(running.name, piece) for piece in fitting]
            if processes.first:
                self.files.pieces(kind, made)
            processes.wait()
            self.pieces[kind] = self.files.pieces(kind, made)
        hidden = int(getattr(model.config.get_text_config(), "hidden_size", every[0].hidden_size))
        token = hidden * model.dtype.itemsize
        kept = sum(moment_bytes(ffn, ffn.width) for ffn in every) + (metric_bytes(every) if wanted else 0)
        needed = (2 * token_count(batches) + (len(layers) + 2) * token_count(metric)) * token + kept
        needed += (
            token_count(held_out) * sum(ffn.hidden_size + ffn.output_size for ffn in every) * model.dtype.itemsize
        )
        needed += stored if any(ffn.spec.stacked for ffn in every) else 0
        there = sum(
            path.stat().st_size for folder in (work, statistics.folder) for path in folder.rglob("*.safetensors")
        )
        check_disk(max(0, needed - there), work, f"calibrating a model of {len(layers)} layers")
        self.loader = LayerLoader(model, self.layers, processes.device)
        self.chain = LayerChain(model, self.layers)

    def run(self) -> None:
        """Takes all moments, and the metric of the loss where it is wanted, from where the last run was stopped."""
        count, done = len(self.layers), self.files.layer
        backwards = [] if not self.pieces["metric"] else range(count + 1, 2 * count + 1)
        forward = sum(row_count(piece) for pieces in self.pieces.values() for _, piece in pieces)
        steps = (
            [forward] * count + [0] + [sum(row_count(piece) for _, piece in self.pieces["metric"])] * len(backwards)
        )
        with evaluating(self.model), self.chain.standing_in(), Progress(sum(steps), "layers") as self.progress:
            self.progress.update(sum(steps[:done]))
            for number in range(done, count):
                with self.loader.loaded(self.layers[number]):
                    self._forward(number)
                self._step(number + 1, ("rows", number - 1), ("held_out", number - 1))
            if not backwards:
                return
            with only_these_train(self.model, []):
                if done <= count:
                    if self.processes.first:  # answers are drawn one after another
                        self._head()
                    self._step(count + 1)
                for step in range(max(done, count + 1), 2 * count + 1):
                    number = 2 * count - step
                    with self.loader.loaded(self.layers[number]):
                        self._backward(number)
                    self._step(step + 1, ("gradient", number))

    def _step(self, done: int, *needless: tuple[str, int]) -> None:
        """Writes down that a layer is done, in all processes, and removes what none needs any more."""
        self.processes.wait()
        if self.processes.first:
            self.files.step(done)
            for kind, layer in needless:
                self.files.forget(kind, layer)

    def _forward(self, number: int) -> None:
        """Runs a layer on all pieces, and takes the moments of its FFNs."""
        sums = [StatisticsSums(ffn) for ffn in self.ffns[number]]
        for kind, pieces in self.pieces.items():
            running = Running()
            hooks = []
            if kind != "metric":
                hooks = [hook for item in sums for hook in item.watch(running, held_out=kind == "held_out")]
            try:
                for place, (running.name, piece) in self.processes.share(list(enumerate(pieces))):
                    running.batch = on_device(piece, self.model)
                    before = self.files.read(kind, number - 1, place, self.processes.device)
                    with run_on(running.name), torch.set_grad_enabled(False):
                        after = self.chain.run(number, running.batch, before)
                    self.files.write(kind, number, place, after)
                    self.progress.update(row_count(piece))
            finally:
                for hook in hooks:
                    hook.remove()
        for ffn, item in zip(self.ffns[number], sums, strict=True):
            item.join(self.processes)
            if self.processes.first:
                self.statistics.write(ffn, item.statistics())
        if self.processes.first:
            self.statistics.done(ffn.name for ffn in self.ffns[number])

    def _head(self) -> None:
        """Runs what comes behind the layers, and takes the gradients of what it was given."""
        last = len(self.layers) - 1
        generator = torch.Generator(self.processes.device).manual_seed(self.statistics.header.seed)
        answers: SampledAnswers | None = None
        for place, (name, piece) in enumerate(self.pieces["metric"]):
            batch = on_device(piece, self.model)
            before = self._leaves("metric", last, place)
            with run_on(name):
                self.chain.hand_on(before)
                answers = answers or SampledAnswers(self.model, batch)
                answers.backward(batch, generator)
            self._keep_gradients(last, place, before)

    def _backward(self, number: int) -> None:
        """Runs a layer once more, and back: the metric of its FFNs, and the gradients of what it was given."""
        sums: dict[str, MetricSum] = {}
        running: dict[str, Batch] = {}
        exits = {ffn.exit: ffn for ffn in self.ffns[number]}
        hooks = [watch_metric(ffn, sums.setdefault(metric_place(ffn), MetricSum()), running) for ffn in exits.values()]
        try:
            for place, (name, piece) in self.processes.share(list(enumerate(self.pieces["metric"]))):
                running["batch"] = on_device(piece, self.model)
                before = self._leaves("metric", number - 1, place) if number else {}
                with run_on(name), torch.enable_grad():
                    after = self.chain.run(number, running["batch"], before)
                    gradients = self.files.read("gradient", number, place, self.processes.device)
                    wanted = [key for key in gradients if after[key].requires_grad]
                    if wanted:
                        torch.autograd.backward([after[key] for key in wanted], [gradients[key] for key in wanted])
                if number:
                    self._keep_gradients(number - 1, place, before)
                self.progress.update(row_count(piece))
        finally:
            for hook in hooks:
                hook.remove()
        sizes = {metric_place(ffn): ffn.output_size for ffn in exits.values()}
        for where, item in sums.items():
            item.join(self.processes, sizes[where])
            if self.processes.first:
                self.statistics.write_metric(where, item.factor())

    def _leaves(self, kind: str, layer: int, place: int) -> dict[str, torch.Tensor]:
        """What a layer returned, to take gradients of."""
        found = self.files.read(kind, layer, place, self.processes.device)
        return {name: item.requires_grad_(item.is_floating_point()) for name, item in found.items()}

    def _keep_gradients(self, layer: int, place: int, leaves: dict[str, torch.Tensor]) -> None:
        found = {name: item.grad for name, item in leaves.items() if item.grad is not None}
        self.files.write("gradient", layer, place, found)
