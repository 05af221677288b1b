"""What transformers looks up by the name of a class or of a config: a fused class gets what its stock class gets.

`AutoModel*.register` fills the maps by config class alone. The tables of names beside them, which say what a class
is for, stay as they are: Trainer's label smoothing shifts labels where a class's name stands under causal language
models, its cards name a task by them, pipelines and servers choose their ways by them. `model_type` is dealt with in
`configs`.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto import (
    feature_extraction_auto,
    image_processing_auto,
    modeling_auto,
    processing_auto,
    tokenization_auto,
)

from ..families import Family

__all__ = ["add_class_names", "add_processors"]


def add_class_names(family: Family, fused_type: str) -> None:
    """Gives a family's fused type a row in each of transformers' tables of class names that has its stock type.

    Args:
        family: The family.
        fused_type: The `model_type` of its fused configs.
    """
    from transformers.modelcard import TASK_MAPPING

    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    for table in (*tables, *TASK_MAPPING.values()):  # one of the latter is a copy
        row = table.get(family.model_type)
        if row is not None:
            table.setdefault(fused_type, f"Fused{row}" if isinstance(row, str) else tuple(f"Fused{r}" for r in row))


def add_processors(stock_config: Any, fused_config: Any) -> None:
    """Gives a fused config class the tokenizer, the processor and their like that its stock class has.

    Args:
        stock_config: The stock config class.
        fused_config: The fused one.
    """
    tokenizer = tokenization_auto.TOKENIZER_MAPPING.get(stock_config, None)
    if tokenizer is not None:
        AutoTokenizer.register(fused_config, tokenizer, exist_ok=True)
    for mapping in (
        feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        processing_auto.PROCESSOR_MAPPING,
    ):
        found = mapping.get(stock_config, None)
        if found is not None:
            mapping.register(fused_config, found, exist_ok=True)
