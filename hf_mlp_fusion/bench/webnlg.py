"""WebNLG: a causal language model is fine-tuned to put triples in words, and what it writes is scored."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorForSeq2Seq, set_seed

from ..data import Batch, load_tokenizer, longest_row, on_device, padded_batches
from ..errors import DataError, UnsupportedModelError
from ..fusion import enough_rows
from ..metrics import load
from ..modeling.loading import load_whole
from .train import History, Settings, fine_tune
from .webnlg_data import WebNLGItem, prompt_batch, read_webnlg, training_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["WEBNLG_BENCH", "WebNLGBench", "WebNLGData"]

logger = logging.getLogger(__name__)

_BEAMS = 5
_NEW_TOKENS = 96  # of a text, at most
_BATCH = 96  # items generated at once


@dataclass(frozen=True)
class WebNLGData:
    """The items of WebNLG.

    Args:
        train: Items to train on.
        fold: The validation split: the learning rate is chosen on its loss.
        seen: Test items of categories that the training items have.
        unseen: Test items of the other categories.
    """

    train: list[WebNLGItem]
    fold: list[WebNLGItem]
    seen: list[WebNLGItem]
    unseen: list[WebNLGItem]


class WebNLGBench:
    """Triples to text, after Gardent et al. (2017); scored on seen and unseen categories."""

    name = "webnlg"
    tasks: tuple[str, ...] = ("webnlg",)
    metrics: tuple[str, ...] = tuple(
        f"{metric}{part}" for metric in ("bleu", "meteor", "ter") for part in ("", "_seen", "_unseen")
    )
    task_type = "text-generation"

    def split(self, task: str) -> str:
        """The split that is reported on."""
        return "test"

    def load_data(self, task: str, source: str, limit: int | None) -> WebNLGData:
        """Reads the items.

        Args:
            task: `"webnlg"`.
            source: What `read_webnlg` takes.
            limit: Items to keep of each split, at most; all if not given.

        Raises:
            DataError: There are no such data.
        """
        splits = read_webnlg(source)
        return WebNLGData(*(splits[name][:limit] for name in ("train", "validation", "test_seen", "test_unseen")))

    def load_model(self, task: str, name: str, seed: int) -> tuple[PreTrainedModel, Any]:
        """Loads a causal language model and its tokenizer.

        Raises:
            UnsupportedModelError: The model is an encoder-decoder, for which the prompts here are not made.
            DataError: The model has no tokenizer.
        """
        set_seed(seed)
        tokenizer = load_tokenizer(name)
        if AutoConfig.from_pretrained(name).is_encoder_decoder:
            raise UnsupportedModelError(f"{name} is an encoder-decoder, and the WebNLG bench is for causal models")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return load_whole(AutoModelForCausalLM, name, dtype="float32"), tokenizer

    def calibration(
        self, task: str, model: PreTrainedModel, tokenizer: Any, data: WebNLGData, settings: Settings
    ) -> list[Batch]:
        """The first training rows, prompts and texts, as the model will see them."""
        longest = longest_row(model, settings.max_length)
        coded = (training_rows([item], tokenizer, longest) for item in data.train)
        rows = enough_rows(itertools.chain.from_iterable(coded), lambda row: (1, len(row["input_ids"])))
        return padded_batches(rows, tokenizer.pad_token_id)

    def run(
        self,
        task: str,
        model: PreTrainedModel,
        tokenizer: Any,
        data: WebNLGData,
        settings: Settings,
        seed: int,
        rate: float,
    ) -> History:
        """Fine-tunes a model in place, and scores what it writes after the last epoch, by beam search.

        The score on the fold is the negative loss a token.
        """
        length = longest_row(model, settings.max_length)
        train, fold = (training_rows(items, tokenizer, length) for items in (data.train, data.fold))
        collator = DataCollatorForSeq2Seq(tokenizer)
        history = fine_tune(
            model, tokenizer, train, {"fold": fold}, settings, seed, rate, collator=collator, by_length=True
        )
        parts = {"_seen": data.seen, "_unseen": data.unseen}
        texts = {part: write_texts(model, tokenizer, items) for part, items in parts.items()}
        scores = {
            f"{name}{part}": value for part in parts for name, value in _scores(texts[part], parts[part]).items()
        }
        whole = _scores([*itertools.chain(*texts.values())], [*itertools.chain(*parts.values())])
        return {
            "fold": [entry | {"score": -entry["loss"]} for entry in history["fold"]],
            "reported": [whole | scores],
        }


WEBNLG_BENCH = WebNLGBench()


@torch.no_grad()
def write_texts(model: PreTrainedModel, tokenizer: Any, items: Sequence[WebNLGItem]) -> list[str]:
    """Puts the triples of items in words, by beam search.

    Args:
        model: A fine-tuned model.
        tokenizer: Its tokenizer.
        items: The items.
    """
    model.eval()
    longest = longest_row(model, 1024)
    new_tokens = min(_NEW_TOKENS, longest // 2)
    order = sorted(range(len(items)), key=lambda index: sum(map(len, items[index].triples)))
    texts = [""] * len(items)
    for chunk in _chunks(order, _BATCH):
        prompts = on_device(prompt_batch([items[index] for index in chunk], tokenizer, longest - new_tokens), model)
        written = model.generate(  # type: ignore[operator]
            **prompts,
            max_new_tokens=new_tokens,
            num_beams=_BEAMS,
            do_sample=False,
            early_stopping=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = tokenizer.batch_decode(written[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chunk, new, strict=True):
            texts[index] = text.strip()
    return texts


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (order[start : start + size] for start in range(0, len(order), size))


def _scores(texts: list[str], items: Sequence[WebNLGItem]) -> dict[str, float]:
    """BLEU and TER as sacreBLEU has them, METEOR in percent too; its form without synonyms needs no WordNet."""
    references = [list(item.references) for item in items]
    scores: dict[str, float] = {}
    for name in ("bleu", "ter", "meteor_exact_stem", "meteor"):
        try:
            scores |= load(name).compute(predictions=texts, references=references)
        except DataError as error:
            logger.warning("METEOR is left out: %s", error)
    return {name: 100 * value if name.startswith("meteor") else value for name, value in scores.items()}
