"""Mixtures of experts that are kept as 3-D parameters, and the dense and shared FFNs beside them."""

from dataclasses import replace
from typing import Any

from ..spec import Family, FFNSpec

_LAYER = r"(model\.)?layers\.(?P<layer>\d+)"


def _experts(name: str, block: str = "mlp", field: str = "moe_intermediate_size") -> FFNSpec:
    """A stack of gated experts, whose module says how they lie in it; class names begin with `name`."""
    return FFNSpec(
        host=f"{name}Experts",
        pattern=rf"{_LAYER}\.{block}\.experts",
        up="gate_up_proj",
        gate="gate_up_proj",
        down="down_proj",
        stacked=True,
        width_field=field,
    )


def _dense(name: str, path: str = "mlp", field: str = "intermediate_size", activation: str = "act_fn") -> FFNSpec:
    """An FFN as Llama's: that of a layer without experts, or a shared expert."""
    return FFNSpec(
        host=f"{name}MLP",
        pattern=rf"{_LAYER}\.{path}",
        up="up_proj",
        gate="gate_proj",
        activation=activation,
        down="down_proj",
        width_field=field,
    )


def _multiple(name: str, path: str = "shared_experts", field: str = "n_shared_experts") -> FFNSpec:
    """Shared experts that are one FFN, so many times as wide as a routed expert."""

    def times(config: Any, width: int) -> int:
        return int(width // config.moe_intermediate_size)

    return replace(_dense(name, rf"mlp\.{path}", field), field_value=times)


def _family(
    model_type: str, name: str, *ffns: FFNSpec, router: str = r"mlp\.gate", config: str | None = None
) -> Family:
    """A family; `router` is what leads to its routers. PEFT has no default targets for its stock models either."""
    pattern = rf".*\.{router}\..*"
    return Family(model_type, config or f"{name}Config", ffns, router=pattern)


def _deepseek_like(model_type: str, name: str, field: str = "n_shared_experts", router: str = r"mlp\.gate") -> Family:
    """A family with dense layers first, and shared experts beside the routed ones after them."""
    return _family(model_type, name, _experts(name), _multiple(name, field=field), _dense(name), router=router)


_GRANITE_SHARED = FFNSpec(
    host="GraniteMoeSharedMLP",
    pattern=rf"{_LAYER}\.shared_mlp",
    up="input_linear",
    packed="halves",
    activation="activation",
    down="output_linear",
    width_field="shared_intermediate_size",
)

FAMILIES = (
    *(
        _family(model_type, name, _experts(name, field="intermediate_size"))
        for model_type, name in (
            ("mixtral", "Mixtral"),
            ("olmoe", "Olmoe"),
            ("flex_olmo", "FlexOlmo"),
            ("minimax", "MiniMax"),
            ("minimax_m2", "MiniMaxM2"),
        )
    ),
    *(
        _family(model_type, name, _experts(name, field="intermediate_size"), router=r"mlp\.router")
        for model_type, name in (("gpt_oss", "GptOss"), ("phimoe", "Phimoe"))
    ),
    _family(
        "granitemoe",
        "GraniteMoe",
        _experts("GraniteMoe", "block_sparse_moe", "intermediate_size"),
        router=r"block_sparse_moe\.router",
    ),
    _family(
        "granitemoeshared",
        "GraniteMoeShared",
        _experts("GraniteMoeShared", "block_sparse_moe", "intermediate_size"),
        _GRANITE_SHARED,
        router=r"block_sparse_moe\.router",
    ),
    *(
        _family(model_type, name, _experts(name), _dense(name))
        for model_type, name in (("qwen3_moe", "Qwen3Moe"), ("mimo_v2_flash", "MiMoV2Flash"), ("mellum", "Mellum"))
    ),
    *(
        _family(
            model_type,
            name,
            _experts(name),
            _dense(name, r"mlp\.shared_expert", "shared_expert_intermediate_size"),
            _dense(name),
        )
        for model_type, name in (("qwen2_moe", "Qwen2Moe"), ("qwen3_next", "Qwen3Next"))
    ),
    *(
        _deepseek_like(model_type, name)
        for model_type, name in (
            ("deepseek_v2", "DeepseekV2"),
            ("deepseek_v3", "DeepseekV3"),
            ("dots1", "Dots1"),
            ("glm4_moe", "Glm4Moe"),
            ("glm4_moe_lite", "Glm4MoeLite"),
            ("solar_open", "SolarOpen"),
        )
    ),
    _deepseek_like("exaone_moe", "ExaoneMoe", "num_shared_experts"),
    _deepseek_like("ernie4_5_moe", "Ernie4_5_Moe", "moe_num_shared_experts"),
    _deepseek_like("afmoe", "Afmoe", "num_shared_experts", router=r"mlp\.router"),
    _family(
        "llama4_text",
        "Llama4Text",
        _experts("Llama4Text", "feed_forward", "intermediate_size"),
        _dense("Llama4Text", r"feed_forward\.shared_expert", activation="activation_fn"),
        _dense("Llama4Text", "feed_forward", "intermediate_size_mlp", activation="activation_fn"),
        router=r"feed_forward\.router",
    ),
)
