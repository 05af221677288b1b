"""Encoders of images, and of images beside texts."""

from typing import Any

from ..spec import Family, FFNSpec


def _mlp(host: str, pattern: str, **more: Any) -> FFNSpec:
    """An FFN of two matrices on image patches, unless `padding` says that it has texts."""
    parts = {"up": "fc1", "activation": "activation_fn", "down": "fc2", "padding": "none"}
    return FFNSpec(host=host, pattern=pattern, **(parts | more))


def _ratio(config: Any, width: int) -> float:
    """DINOv2's `mlp_ratio`; half a unit more, as the product with the hidden size is rounded down."""
    return (width + 0.5) / config.hidden_size


def _dinov2_like(model_type: str, name: str) -> Family:
    """A family whose layers have DINOv2's layout, plain or gated; its class names begin with `name`."""
    pattern = r"encoder\.layer\.(?P<layer>\d+)\.mlp"
    plain = _mlp(f"{name}MLP", pattern, width_field="mlp_ratio", field_value=_ratio)
    gated = _mlp(f"{name}SwiGLUFFN", pattern, up="up_proj", gate="gate_proj", activation="act_fn", down="down_proj")
    note = "no plain export of gated FFNs: a stock config gives their width by a ratio alone, in steps of 8"
    targets = ("query", "value")
    return Family(model_type, f"{name}Config", (plain, gated), lora_targets=targets, note=note)


def _two_towers(model_type: str, name: str) -> tuple[Family, ...]:
    """A family of a text and an image encoder, and each of them alone; its class names begin with `name`."""
    towers = {
        tower: _mlp(
            f"{name}MLP",
            rf"(?P<stack>{tower}_model)\.encoder\.layers\.(?P<layer>\d+)\.mlp",
            width_field=f"{tower}_config.intermediate_size",
            padding="mask" if tower == "text" else "none",
        )
        for tower in ("text", "vision")
    }
    alone = [
        Family(
            f"{model_type}_{tower}_model",
            f"{name}{tower.capitalize()}Config",
            (
                _mlp(
                    f"{name}MLP",
                    r"encoder\.layers\.(?P<layer>\d+)\.mlp",
                    width_field="intermediate_size",
                    padding="mask" if tower == "text" else "none",
                ),
            ),
            lora_targets=("q_proj", "v_proj"),
        )
        for tower in ("text", "vision")
    ]
    whole = Family(model_type, f"{name}Config", tuple(towers.values()), lora_targets=("q_proj", "v_proj"))
    return (whole, *alone)


FAMILIES = (
    Family(
        "vit",
        "ViTConfig",
        (_mlp("ViTMLP", r"layers\.(?P<layer>\d+)\.mlp"),),
        lora_targets=("q_proj", "v_proj"),
        width_field="intermediate_size",
    ),
    _dinov2_like("dinov2", "Dinov2"),
    _dinov2_like("dinov2_with_registers", "Dinov2WithRegisters"),
    *_two_towers("clip", "CLIP"),
    *_two_towers("siglip", "Siglip"),
)
