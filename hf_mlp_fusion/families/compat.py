"""The semi-private names of transformers and its like that this package relies on, in one place.

`tests/families/test_compat.py` fails first when one of them moves. Besides what is used here:

- `PreTrainedModel.post_init`, which a model's `__init__` calls when its modules exist (`classes.py`);
- `PreTrainedModel.initialize_weights` and `transformers.initialization` (`classes.py`);
- `nn.Module._load_from_state_dict` of torch (`modules.py`);
- `huggingface_hub.errors.HTTPError`, the base of its errors and of those of its HTTP client (`push.py`);
- `Trainer._prepare_inputs` (`training/trainer.py`);
- `_hf_hook`, by which accelerate marks the models that it places (`training/teacher.py`);
- `transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING` (`neighbours.py`);
- `transformers.modelcard.TASK_MAPPING`, the pipeline tag of each head;
- the `MODEL_FOR_*_MAPPING_NAMES` of `transformers.models.auto.modeling_auto` (`objectives.py`);
- `_weight_conversions`, by which a loaded model is saved under the names that it was loaded from (`plain.py`);
- `PreTrainedModel._can_set_attn_implementation`, `_can_set_experts_implementation` and `_no_split_modules`
  (`classes.py`);
- what `use_experts_implementation` gives stacks of experts (`has_gate`, `has_bias`, `is_transposed`,
  `is_concatenated`, `_apply_gate`, which is act(gate) · up), `_experts_implementation` of configs
  (`stack_modules.py`), and that `"batched_mm"` and `"grouped_mm"` ask for the bias of each row's expert where there is
  one (`expert_places.py`);
- `torch._dynamo.maybe_mark_dynamic`, and `torch._C._are_functorch_transforms_active`, by which
  `torch.autograd.Function` goes as well (`gate_kernel.py`);
- `transformers.utils.hub.cached_file`, its `_raise_exceptions_for_missing_entries`, and `cached_files` (`headers.py`,
  `classes.py`);
- `transformers.modeling_utils._add_variant` (`headers.py`);
- `PreTrainedModel._upload_modified_files`, which uploads what a push has saved (`classes.py`);
- of `transformers.core_model_loading` `rename_source_key`, `dot_natural_key`, `WeightRenaming`, and `WeightConverter`
  with its `add_tensor` and `convert`; `_weight_conversions` again, which is there too on a model that was loaded with
  `device_map="meta"` (`streaming/stored.py`);
- `transformers.modeling_utils.remove_tied_weights_from_state_dict` and `PreTrainedModel._keys_to_ignore_on_save`
  (`streaming/shards.py`), and `all_tied_weights_keys` (`streaming/twin.py`);
- the tables `TRANSFORMERS_MODELS_TO_*` of `peft.utils.constants` (`adapters.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.models.auto import modeling_auto

__all__ = ["auto_model_classes", "auto_models_of", "pipeline_tag"]


def auto_model_classes() -> Iterator[tuple[Any, Any]]:
    """Yields each `AutoModel*` class with its mapping from config class to model class."""
    for name in sorted(vars(modeling_auto)):
        auto_class = getattr(modeling_auto, name)
        if name.startswith("AutoModel") and getattr(auto_class, "_model_mapping", None) is not None:
            yield auto_class, auto_class._model_mapping


def auto_models_of(config_class: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each `AutoModel*` class that knows a config class, with the model class that it makes of it."""
    for auto_class, mapping in auto_model_classes():
        if config_class in mapping:
            found = mapping[config_class]
            # A family with several classes for one task (Funnel, say) lists its default first.
            head = found[0] if isinstance(found, tuple | list) else found
            if head.config_class is config_class:  # and not a head of another family that is listed here too
                yield auto_class, head


def pipeline_tag(architecture: str) -> str | None:
    """The Hub's name of the task that a stock model class is for; None where it has none.

    Args:
        architecture: Name of the class, such as `"RobertaForMaskedLM"`.
    """
    from transformers.modelcard import TASK_MAPPING

    mapping: dict[str, Any] = TASK_MAPPING
    return next((tag for tag, names in mapping.items() if architecture in names.values()), None)
