"""A tiny tokenizer and tiny texts for the tiny models."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(70)]
SPECIAL = {
    "bert": ["<pad>", "<s>", "</s>", "<mask>"],
    "roberta": ["<s>", "<pad>", "</s>", "<mask>"],
    "gpt2": ["<pad>", "</s>", "<s>", "<mask>"],
    "switch_transformers": ["<pad>", "</s>", "<s>", "<mask>"],
}
TEMPLATES = {
    "bert": "<s> $A </s>",
    "roberta": "<s> $A </s>",
    "gpt2": "$A",
    "switch_transformers": "$A </s>",
}


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose ids fit the tiny model of a family."""
    names = [*SPECIAL[family], "<unk>", *WORDS, *(f"<extra_id_{number}>" for number in range(8))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=TEMPLATES[family], special_tokens=[(name, vocabulary[name]) for name in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{number}>" for number in range(8)],
    )


def tiny_texts(count: int = 12) -> list[str]:
    """Texts of 3 to 12 words, the same at every call."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(3, 13))) for _ in range(count)]
