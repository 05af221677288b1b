"""Tiny models of any family, and inputs for them: sizes by the names that config fields have, nothing a family."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mlp_fusion.families import FAMILIES, Family
from hf_mlp_fusion.families.compat import auto_models_of

WIDTH = 64
_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "projection_dim"), 16),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner"), WIDTH),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size"), WIDTH),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), WIDTH),
    **dict.fromkeys(("shared_intermediate_size",), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_decoder_layers",), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 2),
    **dict.fromkeys(("n_heads", "num_heads", "num_kv_heads"), 2),
    "num_key_value_heads": 1,
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "rotary_dim": 4,
    "vocab_size": 99,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    # images and sound
    "image_size": 16,
    "patch_size": 8,
    "max_source_positions": 20,
    "num_mel_bins": 8,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    # fields that others must fit
    "attention_types": [[["global", "local"], 1]],
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    "moe_num_shared_experts": 1,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    "expert_capacity": 64,
    "add_router_probs": False,
    "query_pre_attn_scalar": 8,
    "mm_tokens_per_image": 4,
}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def every_family() -> list[Any]:
    """The names of all families, as parameters of a test; those that repeat a kind bear the mark `every`."""
    seen: set[Any] = set()
    parameters = []
    for name, family in sorted(FAMILIES.items()):
        kinds = frozenset(
            (
                spec.layout,
                spec.packed,
                spec.gate is None,
                spec.activation is None,
                spec.padding,
                spec.host.endswith("Layer"),
            )
            for spec in family.ffns
        )
        kind = kinds, "decoder" in str(family.ffns), family.width_field is None
        parameters.append(pytest.param(name, marks=[pytest.mark.every] if kind in seen else []))
        seen.add(kind)
    return parameters


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """Values that make a config of its class tiny."""
    values = {name: value for name, value in _SIZES.items() if name in config.to_dict()}
    if "kv_lora_rank" in values:  # heads share one latent vector, and are as many
        values["num_key_value_heads"] = values["num_attention_heads"]
    if hasattr(config, "linear_num_key_heads"):  # or no layer would have attention
        values["layer_types"] = ["linear_attention", "full_attention"]
    for place, name in enumerate(_TOKENS):
        if hasattr(config, name):
            values[name] = place % 3
    if hasattr(config, "image_token_id"):
        values["image_token_id"] = 98
    if config.is_encoder_decoder:
        values["decoder_start_token_id"] = 0
    for name in config.sub_configs:
        if (sub := getattr(config, name, None)) is not None:
            values[name] = _shrunk(sub)
    return values


def tiny_config(family: Family, **changes: Any) -> PreTrainedConfig:
    """A tiny config of a family."""
    cls = getattr(transformers, family.config_class)
    return cls(**_shrunk(cls()) | changes)


def main_head(family: Family) -> type[PreTrainedModel]:
    """The head that a family is mostly used with: one that writes text where it can, else the body."""
    heads = {auto.__name__: head for auto, head in auto_models_of(getattr(transformers, family.config_class))}
    order = ("Seq2SeqLM", "CausalLM", "MaskedLM")
    return next((heads[f"AutoModelFor{name}"] for name in order if f"AutoModelFor{name}" in heads), heads["AutoModel"])


def tiny_family_model(family: Family, head: type[PreTrainedModel] | None = None, **changes: Any) -> PreTrainedModel:
    """A tiny model of a family, with random weights and biases, the same at every call."""
    torch.manual_seed(0)
    model = (head or main_head(family))(tiny_config(family, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if family.router and re.fullmatch(rf"{family.router}|.*embed_tokens\.weight", name):
                # Some start at zero, or tokens are much alike, and all go to the same experts.
                parameter.normal_(std=0.0 if name.endswith("bias") else 1.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def inputs_of_any(model: PreTrainedModel, batch: int = 3, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs that a model of any family accepts."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    inputs: dict[str, torch.Tensor] = {}
    ids = torch.randint(3, 90, (batch, length), generator=generator)
    main = model.main_input_name
    if main == "input_features":
        inputs[main] = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    elif main == "input_values":
        inputs[main] = torch.randn(batch, 400, generator=generator)
    two = hasattr(model.base_model, "text_model") and hasattr(model.base_model, "vision_model")
    if main == "pixel_values" or two:
        size = getattr(config, "vision_config", config).image_size
        inputs["pixel_values"] = torch.randn(batch, 3, size, size, generator=generator)
    if main == "input_ids" or two:
        inputs["input_ids"] = ids
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}
    if config.is_encoder_decoder and "SequenceClassification" in type(model).__name__:
        ids[:, 4] = config.eos_token_id  # such a head makes its decoder's inputs, and reads where the text ends
    elif config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5].contiguous()
    return inputs


@torch.no_grad()
def output_of_any(model: PreTrainedModel) -> torch.Tensor:
    """The first tensor that a model returns."""
    outputs = model.eval()(**inputs_of_any(model)).to_tuple()
    return next(item for item in outputs if isinstance(item, torch.Tensor))
