"""The semi-private names of transformers that this package relies on, in one place.

`tests/test_compat.py` fails first when one of them moves. Besides what is used here:

- `PreTrainedModel.post_init`, which a model's `__init__` calls when its modules exist (`modeling.py`);
- `PreTrainedModel.initialize_weights` and `transformers.initialization` (`modeling.py`);
- `nn.Module._load_from_state_dict` of torch (`modules.py`);
- `transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING` (`registration.py`);
- the `MODEL_FOR_*_MAPPING_NAMES` of `transformers.models.auto.modeling_auto` (`objectives.py`);
- `transformers.utils.hub.cached_file`, its `_raise_exceptions_for_missing_entries`, and `cached_files` (`headers.py`,
  `modeling.py`);
- `PreTrainedModel._upload_modified_files`, which uploads what a push has saved (`modeling.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.models.auto import modeling_auto

__all__ = ["auto_model_classes"]


def auto_model_classes() -> Iterator[tuple[Any, Any]]:
    """Yields each `AutoModel*` class with its mapping from config class to model class."""
    for name in sorted(vars(modeling_auto)):
        auto_class = getattr(modeling_auto, name)
        if name.startswith("AutoModel") and getattr(auto_class, "_model_mapping", None) is not None:
            yield auto_class, auto_class._model_mapping
