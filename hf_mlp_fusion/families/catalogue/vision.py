"""Encoders of images, and of images beside texts."""

from typing import Any

from ..spec import Family, FFNSpec

_LORA = ("q_proj", "v_proj")


def _mlp(host: str, pattern: str, **more: Any) -> FFNSpec:
    """An FFN of two matrices on image patches, unless `padding` says that it has texts."""
    parts = {"up": "fc1", "activation": "activation_fn", "down": "fc2", "padding": "none"}
    return FFNSpec(host=host, pattern=pattern, **(parts | more))


def _ratio(config: Any, width: int) -> int:
    """DINOv2's `mlp_ratio`, a whole number; `export_plain` refuses widths between."""
    return max(1, round(width / config.hidden_size))


def _gated_ratio(config: Any, width: int) -> int:
    """The same of gated FFNs, which have two thirds of those units."""
    return max(1, round(1.5 * width / config.hidden_size))


def _dinov2_like(model_type: str, name: str) -> Family:
    """A family whose layers have DINOv2's layout, plain or gated; its class names begin with `name`."""
    pattern = r"encoder\.layer\.(?P<layer>\d+)\.mlp"
    plain = _mlp(f"{name}MLP", pattern, width_field="mlp_ratio", field_value=_ratio)
    gated = _mlp(
        f"{name}SwiGLUFFN",
        pattern,
        up="up_proj",
        gate="gate_proj",
        activation="act_fn",
        down="down_proj",
        width_field="mlp_ratio",
        field_value=_gated_ratio,
    )
    note = "plain export at multiples of the hidden size alone, of two thirds of them where FFNs are gated"
    return Family(model_type, f"{name}Config", (plain, gated), lora_targets=_LORA, note=note)


def _tower(name: str, tower: str, *, whole: bool, pools: bool = False) -> tuple[FFNSpec, ...]:
    """The FFNs of a text or image encoder, alone or in the whole model; with `pools`, its pooling head's too."""
    inside = rf"(?P<stack>{tower}_model)\." if whole else ""
    more = {
        "width_field": f"{tower}_config.intermediate_size" if whole else "intermediate_size",
        "padding": "mask" if tower == "text" else "none",
    }
    layers = _mlp(f"{name}MLP", rf"{inside}encoder\.layers\.(?P<layer>\d+)\.mlp", **more)
    inside = rf"{tower}_model\." if whole else ""
    head = _mlp(f"{name}MLP", rf"(?P<stack>{inside}head)\.mlp", **more)
    return (layers, head) if pools else (layers,)


def _two_towers(model_type: str, name: str, *, pools: bool) -> tuple[Family, Family]:
    """A family of a text and an image encoder, and the latter alone; its class names begin with `name`."""
    ffns = (*_tower(name, "text", whole=True), *_tower(name, "vision", whole=True, pools=pools))
    alone = _tower(name, "vision", whole=False, pools=pools)
    return (
        Family(model_type, f"{name}Config", ffns, lora_targets=_LORA),
        Family(f"{model_type}_vision_model", f"{name}VisionConfig", alone, lora_targets=_LORA),
    )


FAMILIES = (
    Family(
        "vit",
        "ViTConfig",
        (_mlp("ViTMLP", r"layers\.(?P<layer>\d+)\.mlp"),),
        lora_targets=_LORA,
        width_field="intermediate_size",
    ),
    _dinov2_like("dinov2", "Dinov2"),
    _dinov2_like("dinov2_with_registers", "Dinov2WithRegisters"),
    *_two_towers("clip", "CLIP", pools=False),
    Family("clip_text_model", "CLIPTextConfig", _tower("CLIP", "text", whole=False), lora_targets=_LORA),
    *_two_towers("siglip", "Siglip", pools=True),
)
