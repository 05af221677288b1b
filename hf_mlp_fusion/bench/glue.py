"""GLUE-style tasks: what they are, where their data come from, and one fine-tuning run of a model on one of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

from ..data import Batch, load_hub_dataset, load_tokenizer, longest_row, padded_batches
from ..errors import DataError, UnsupportedModelError
from ..fusion import calibration_batches, enough_rows
from ..metrics import load
from ..modeling.loading import load_whole
from .train import History, Settings, fine_tune

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

__all__ = ["GLUE", "GLUE_BENCH", "GlueBench", "GlueTask"]


@dataclass(frozen=True)
class GlueTask:
    """A task on a sentence or a pair of them.

    Args:
        name: Its name, that of its folder and of its configuration on the Hub.
        texts: The columns of texts, one or two.
        labels: The labels in words, which models that write text are asked for; none for a score (STS-B).
        metrics: The metrics whose mean, in percent, is the task's score.
        split: The split that scores are reported on.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    split: str = "validation"


GLUE = {
    task.name: task
    for task in (
        GlueTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        GlueTask("mrpc", ("sentence1", "sentence2"), ("not equivalent", "equivalent"), ("accuracy", "f1")),
        GlueTask("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearmanr")),
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            "validation_matched",
        ),
        GlueTask("qnli", ("question", "sentence"), ("entailment", "not entailment"), ("accuracy",)),
    )
}
"""The tasks by name. A task is one line here; its metrics are in `hf_mlp_fusion.metrics`."""

_HELD_OUT = 0.1  # of the training rows: learning rate and epoch are chosen on them


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    Args:
        train: Rows to train on.
        fold: Rows held out of the training data, on which learning rate and epoch are chosen.
        reported: Rows that scores are reported on.
    """

    train: Dataset
    fold: Dataset
    reported: Dataset


class GlueBench:
    """Sentences and pairs of them: classes and scores, by a new head or, where the model writes text, in words."""

    name = "glue"
    tasks: tuple[str, ...] = tuple(GLUE)
    metrics: tuple[str, ...] = ("score",)
    task_type = "text-classification"

    def split(self, task: str) -> str:
        """The split that is reported on."""
        return GLUE[task].split

    def load_data(self, task: str, source: str, limit: int | None) -> TaskData:
        """Reads the rows of a task and holds a tenth of the training rows out, always the same ones.

        Args:
            task: Key of `GLUE`.
            source: A folder with `<task>/<split>.parquet`, or the name of a data set on the Hub that has a
                configuration of the task's name, such as `"nyu-mll/glue"`.
            limit: Rows to keep of each split, at most; all if not given.

        Raises:
            DataError: There are no such data.
        """
        train, reported = (_read_split(GLUE[task], source, split) for split in ("train", GLUE[task].split))
        parts = train.train_test_split(test_size=_HELD_OUT, seed=0)

        def first(rows: Dataset) -> Dataset:
            return rows if limit is None else rows.select(range(min(limit, len(rows))))

        return TaskData(first(parts["train"]), first(parts["test"]), first(reported))

    def load_model(self, task: str, name: str, seed: int) -> tuple[PreTrainedModel, Any]:
        """Loads a model for a task, and its tokenizer: with a new head, or as it is where the model writes text.

        Raises:
            UnsupportedModelError: The model writes text, and the task has no labels in words, or two that begin with
                the same token.
            DataError: The model has no tokenizer.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, set_seed

        tokenizer = load_tokenizer(name)
        labels = GLUE[task].labels
        set_seed(seed)
        if AutoConfig.from_pretrained(name).is_encoder_decoder:
            if not labels:
                raise UnsupportedModelError(f"{task} asks for a number, which a model that writes text cannot give")
            _label_words(GLUE[task], tokenizer)
            return load_whole(AutoModelForSeq2SeqLM, name, dtype="float32"), tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = load_whole(
            AutoModelForSequenceClassification,
            name,
            new_head=True,
            num_labels=len(labels) or 1,
            problem_type=None if labels else "regression",
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        return model, tokenizer

    def calibration(
        self, task: str, model: PreTrainedModel, tokenizer: Any, data: TaskData, settings: Settings
    ) -> list[Batch]:
        """Training rows as the classifier will see them, as many as fusion takes; where it writes text, texts."""
        longest = longest_row(model, settings.max_length)
        columns = [list(data.train[column]) for column in GLUE[task].texts]
        if model.config.is_encoder_decoder:
            return calibration_batches(model, itertools.chain.from_iterable(zip(*columns, strict=True)), tokenizer)
        coded = (
            tokenizer(*texts, truncation=True, max_length=longest)["input_ids"] for texts in zip(*columns, strict=True)
        )
        rows = enough_rows(coded, lambda ids: (1, len(ids)))
        return padded_batches([{"input_ids": ids} for ids in rows], tokenizer.pad_token_id)

    def run(
        self,
        task: str,
        model: PreTrainedModel,
        tokenizer: Any,
        data: TaskData,
        settings: Settings,
        seed: int,
        rate: float,
    ) -> History:
        """Fine-tunes a model on a task in place, and scores it after every epoch.

        A model that writes text is trained to write the label; its prediction is the label whose first token the
        decoder finds likeliest.
        """
        writes = bool(model.config.is_encoder_decoder)
        code = _Coded(GLUE[task], tokenizer, longest_row(model, settings.max_length), writes)
        return fine_tune(
            model,
            tokenizer,
            code.rows(data.train),
            {"fold": code.rows(data.fold), "reported": code.rows(data.reported)},
            settings,
            seed,
            rate,
            collator=DataCollatorForSeq2Seq(tokenizer, model) if writes else DataCollatorWithPadding(tokenizer),
            compute_metrics=code.score,
            logits_to_keep=code.label_logits if writes else None,
        )


GLUE_BENCH = GlueBench()


class _Coded:
    """A task in the tokens of a model: rows in, metrics out."""

    def __init__(self, task: GlueTask, tokenizer: Any, max_length: int, writes: bool) -> None:
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length
        self.words = _label_words(task, tokenizer) if writes else []
        self.firsts = [word[0] for word in self.words]
        self.metric = load("glue", task.name)

    def rows(self, part: Dataset) -> list[dict[str, Any]]:
        texts = [list(part[column]) for column in self.task.texts]
        coded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return [
            {**{name: values[index] for name, values in coded.items()}, "labels": self._label(label)}
            for index, label in enumerate(part["label"])
        ]

    def _label(self, label: Any) -> Any:
        if self.words:
            return self.words[label]
        return label if self.task.labels else float(label)

    def label_logits(self, logits: Any, labels: Tensor) -> Tensor:
        """What the decoder says of each label before it has seen any of it, `[batch, labels]`."""
        return (logits[0] if isinstance(logits, tuple) else logits)[:, 0, self.firsts]

    def score(self, outcome: Any) -> dict[str, float]:
        predictions, labels = outcome.predictions, outcome.label_ids
        if self.words:
            labels = [self.firsts.index(label) for label in labels[:, 0]]
        predictions = predictions.argmax(-1) if self.task.labels else predictions.squeeze(-1)
        values = {
            name: 100 * float(value)
            for name, value in self.metric.compute(predictions=predictions, references=labels).items()
        }
        return values | {"score": sum(values[name] for name in self.task.metrics) / len(self.task.metrics)}


def _label_words(task: GlueTask, tokenizer: Any) -> list[list[int]]:
    words: list[list[int]] = [tokenizer(label)["input_ids"] for label in task.labels]
    if len({word[0] for word in words}) < len(words):
        raise UnsupportedModelError(f"labels of {task.name} begin with the same token in this model's vocabulary")
    return words


def _read_split(task: GlueTask, source: str, split: str) -> Dataset:
    from datasets import Dataset

    folder = Path(source).expanduser() / task.name
    path = folder / f"{split}.parquet"
    if path.is_file():
        import pyarrow.parquet

        rows: Any = Dataset(pyarrow.parquet.read_table(path))
    elif Path(source).expanduser().is_dir():
        raise DataError(f"{folder} has no {split}.parquet; give a folder with <task>/<split>.parquet, or a Hub name")
    else:
        try:
            rows = load_hub_dataset(source, task.name, split)
        except DataError as error:
            raise DataError(f"{source} has no {task.name}/{split}: {error}") from error
    missing = {*task.texts, "label"} - set(rows.column_names)
    if missing:
        raise DataError(f"{task.name}/{split} of {source} lacks the columns {', '.join(sorted(missing))}")
    return rows
