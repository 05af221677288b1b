"""Llama and the causal models after it: a gated FFN of three matrices, or of two where gate and up are packed."""

from ..spec import Family, FFNSpec


def _llama_like(model_type: str, name: str, *, config: str | None = None, inside: str = "") -> Family:
    """A family whose layers have Llama's layout; class names begin with `name`, `inside` leads to them."""
    mlp = FFNSpec(
        host=f"{name}MLP",
        pattern=rf"{inside}layers\.(?P<layer>\d+)\.mlp",
        up="up_proj",
        gate="gate_proj",
        activation="act_fn",
        down="down_proj",
        width_field="text_config.intermediate_size" if inside else "intermediate_size",
    )
    return Family(model_type, config or f"{name}Config", (mlp,), peft_like="llama")


_PHI3 = FFNSpec(
    host="Phi3MLP",
    pattern=r"layers\.(?P<layer>\d+)\.mlp",
    up="gate_up_proj",
    packed="halves",
    activation="activation_fn",
    down="down_proj",
)

FAMILIES = (
    _llama_like("llama", "Llama"),
    _llama_like("mistral", "Mistral"),
    _llama_like("ministral", "Ministral"),
    _llama_like("qwen2", "Qwen2"),
    _llama_like("qwen3", "Qwen3"),
    _llama_like("gemma", "Gemma"),
    _llama_like("gemma2", "Gemma2"),
    _llama_like("gemma3_text", "Gemma3", config="Gemma3TextConfig"),
    _llama_like("gemma3", "Gemma3", inside=r"language_model\."),
    _llama_like("olmo", "Olmo"),
    _llama_like("olmo2", "Olmo2"),
    _llama_like("olmo3", "Olmo3"),
    _llama_like("smollm3", "SmolLM3"),
    _llama_like("granite", "Granite"),
    _llama_like("cohere", "Cohere"),
    Family("phi3", "Phi3Config", (_PHI3,), lora_targets=("qkv_proj",), width_field="intermediate_size"),
)
