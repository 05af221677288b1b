"""Layer-wise tuning: the weights of fused FFNs follow the original model, layer by layer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data import evaluating, on_device, with_decoder_inputs
from ..errors import FusionConfigError
from ..measure import reduced_ffns
from ..measure.gradients import only_these_train
from ..modeling.find import find_ffns
from ..recipe import TuningReport
from .states import TARGETS, mean_squared_error
from .teacher import check_teacher, is_placed

__all__ = ["DEFAULT_TARGET", "LEARNING_RATE", "LayerwiseTuningTrainer"]

DEFAULT_TARGET = "hidden_states"
"""The paper's target. It brings what the model computes nearer to the original than FFN outputs do."""

LEARNING_RATE = 3e-4
"""Of AdamW, when nothing else is said. At 1e-3, tuning on FFN outputs made a small RoBERTa worse than it was."""


class LayerwiseTuningTrainer(Trainer):
    """A `Trainer` that tunes a fused model on the original, its teacher, as the paper does before fine-tuning.

    The loss is the mean over layers of the mean squared error between what the fused model computes there and what
    the original computes there, on all tokens that are no padding. Labels are not used. Only the weights and biases
    of the fused FFNs move; everything else is frozen while `train` runs and thereafter trains or not as before. P is
    no parameter. Neither model drops anything out, so the loss is zero where fusion lost nothing.

    Everything else is as in any `Trainer`: data sets, collators, evaluation (`eval_loss` is this loss), saving,
    resuming. What is saved is the fused model alone; its receipt says that it was tuned, and how.

    Args:
        model: The fused model. It is tuned in place.
        args: As `Trainer` takes them; if not given, one epoch of AdamW at the learning rate `LEARNING_RATE`.
        teacher: The original model, with the same head or without one. It runs once a step, in eval mode and without
            gradients, and stays as it is.
        target: `"hidden_states"`, the outputs of layers, as the model returns them; or `"ffn_outputs"`, the outputs
            of FFNs before dropout, residual and norm, for each model on its own inputs. The experts of a mixture are
            taken together there: what counts is the token's output, whichever experts it was routed to.
        teacher_device: Where the teacher runs; it is moved there. If not given, where the fused model is trained. A
            teacher that accelerate has placed (`device_map="auto"`, `cpu_offload`, `dispatch_model`) stays there.
        **kwargs: The other arguments of `Trainer`.

    Raises:
        UnsupportedModelError: `model` is not fused, the teacher is, or it is not the model that was fused.
        FusionConfigError: There is no such target, the teacher cannot be moved, or several GPUs are driven by one
            process.

    Example:
        >>> from hf_mlp_fusion.training import LayerwiseTuningTrainer
        >>> trainer = LayerwiseTuningTrainer(fused, teacher=model, train_dataset=rows)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> fused.save_pretrained("tuned")  # doctest: +SKIP
    """

    loss_is_scaled_for_ga = False  # a mean over a batch, which `Trainer` is to divide when it accumulates

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments | None = None,
        *,
        teacher: PreTrainedModel,
        target: str = DEFAULT_TARGET,
        teacher_device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        check_teacher(model, teacher)
        if target not in TARGETS:
            raise FusionConfigError(f"target must be one of {', '.join(map(repr, TARGETS))}, not {target!r}")
        if teacher_device is not None and is_placed(teacher):
            raise FusionConfigError("the teacher is placed by accelerate: leave teacher_device out")
        if args is None:
            args = TrainingArguments("tuning", num_train_epochs=1, learning_rate=LEARNING_RATE)
        if args.n_gpu > 1:
            raise FusionConfigError(
                f"one process would drive {args.n_gpu} GPUs: start it with `accelerate launch`, or show it one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        super().__init__(model, args, **kwargs)
        self.teacher = teacher
        self.target = target
        if not is_placed(teacher):
            teacher.to(teacher_device or args.device)  # type: ignore[arg-type]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, with everything but the fused FFNs frozen."""
        model: Any = self.model
        mode, started = model.training, time.perf_counter()
        reduced = set(reduced_ffns(model))
        trained = {name for ffn in find_ffns(model) if ffn.name in reduced for name in ffn.parameter_names()}
        try:
            with only_these_train(model, sorted(trained)):
                output = super().train(*args, **kwargs)
        finally:
            model.train(mode)
        if model.fusion_report is not None:
            done = TuningReport(
                target=self.target,
                teacher=self.teacher.config.name_or_path or "",
                steps=self.state.global_step,
                batch_size=self.get_total_train_batch_size(self.args),
                learning_rate=self.args.learning_rate,
                seed=self.args.seed,
                loss=output.training_loss,
                seconds=round(time.perf_counter() - started, 3),
            )
            model.fusion_report = replace(model.fusion_report, tuning=[*model.fusion_report.tuning, done])
        return output

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; there are no other outputs to return with it."""
        if torch.is_grad_enabled():
            _still(model)
        fused: Any = self.model  # `model` may be wrapped
        batch = with_decoder_inputs(fused, dict(inputs))
        batch = {name: tensor for name, tensor in batch.items() if name not in self.label_names}
        states, names = TARGETS[self.target], reduced_ffns(fused)
        with evaluating(self.teacher):
            seen = batch if is_placed(self.teacher) else on_device(batch, self.teacher)
            wanted = states(self.teacher, self.teacher, names, seen)
        return mean_squared_error(states(model, fused, names, batch), wanted, batch)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """As `Trainer.prediction_step`; the loss needs no labels, and nothing is predicted."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def _still(model: nn.Module) -> None:
    """Turns off what is random in training (dropout, the noise of routers), and leaves activation checkpointing on."""
    for module in model.modules():
        module.training = isinstance(module, GradientCheckpointingLayer)
