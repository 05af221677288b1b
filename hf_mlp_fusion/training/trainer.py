"""Tuning: the weights of fused FFNs follow the original model, layer by layer or in what it predicts."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data import with_decoder_inputs
from ..errors import FusionConfigError, check_choice
from ..measure.gradients import only_these_train
from ..recipe import TuningReport
from .targets import DEFAULT_TARGET, TARGETS, learning_rate_for
from .teacher import check_teacher, is_placed
from .trained import TRAINED

__all__ = ["TuningTrainer"]


class TuningTrainer(Trainer):
    """A `Trainer` that tunes a fused model on the original, its teacher: layer by layer, or on what it predicts.

    Layer by layer, as the paper does before fine-tuning, the loss is the mean over layers of the mean squared error
    between what the fused model computes there and what the original computes there; on logits it is the KL divergence
    of the predictions. Both take all tokens that are no padding. Labels are not used. Only the weights and biases of
    the fused FFNs move, unless `train` says more; everything else is frozen while training lasts, and trains or not as
    before thereafter. P is no parameter. Neither model drops anything out, so the loss is zero where fusion lost
    nothing.

    Everything else is as in any `Trainer`: data sets, collators, evaluation (`eval_loss` is this loss), saving,
    resuming. What is saved is the fused model alone; its receipt says that it was tuned, and how.

    Args:
        model: The fused model. It is tuned in place.
        args: As `Trainer` takes them; if not given, one epoch of AdamW as the target has it best.
        teacher: The original model, with the same head or without one. It runs once a step, in eval mode and without
            gradients, and stays as it is.
        target: `"hidden_states"`, the outputs of layers, as the model returns them; or `"ffn_outputs"`, the outputs
            of FFNs before dropout, residual and norm, for each model on its own inputs. The experts of a mixture are
            taken together there: what counts is the token's output, whichever experts it was routed to. Or `"logits"`,
            KL(teacher ‖ fused) of what the head predicts: of each token, row, start and end; the squared error of
            regression. The teacher has the same head then.
        train: What trains: `"ffns"`, the fused FFNs; `"ffns+norms"`; `"body"`, all but embeddings and the head; or
            `"all"`.
        teacher_device: Where the teacher runs; it is moved there. If not given, where the fused model is trained. A
            teacher that accelerate has placed (`device_map="auto"`, `cpu_offload`, `dispatch_model`) stays there.
        **kwargs: The other arguments of `Trainer`.

    Raises:
        UnsupportedModelError: `model` is not fused, the teacher is, or it is not the model that was fused.
        FusionConfigError: There is no such target or choice of what trains, the teacher cannot be moved, or several
            GPUs are driven by one process.

    Example:
        >>> from hf_mlp_fusion.training import TuningTrainer
        >>> trainer = TuningTrainer(fused, teacher=model, train_dataset=rows)  # doctest: +SKIP
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
        train: str = "ffns",
        teacher_device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        check_teacher(model, teacher)
        check_choice("target", target, TARGETS)
        check_choice("train", train, TRAINED)
        if teacher_device is not None and is_placed(teacher):
            raise FusionConfigError("the teacher is placed by accelerate: leave teacher_device out")
        if args is None:
            rate = learning_rate_for(target, model)
            args = TrainingArguments("tuning", num_train_epochs=1, learning_rate=rate, **TARGETS[target].arguments)
        if args.n_gpu > 1:
            raise FusionConfigError(
                f"one process would drive {args.n_gpu} GPUs: start it with `accelerate launch`, or show it one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        super().__init__(model, args, **kwargs)
        self.teacher = teacher
        self.target, self.trained = target, train
        self._loss = TARGETS[target].loss(model, teacher)
        if not is_placed(teacher):
            teacher.to(teacher_device or args.device)  # type: ignore[arg-type]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, with everything frozen but what is to train."""
        model: Any = self.model
        mode, started = model.training, time.perf_counter()
        try:
            with only_these_train(model, sorted(TRAINED[self.trained](model))):
                output = super().train(*args, **kwargs)
        finally:
            model.train(mode)
        if model.fusion_report is not None:
            done = TuningReport(
                target=self.target,
                trained=self.trained,
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
        with self.accelerator.autocast():  # of both models alike: `Trainer` puts only the one that it trains under it
            return self._loss(model, batch)

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
