"""T5 and its like: FFNs without biases, plain or gated, and in Switch Transformers as experts."""

from ..spec import Family, FFNSpec

_BLOCK = r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d+"


def _t5_like(model_type: str, name: str) -> Family:
    """A family whose blocks have T5's layout, plain (T5) or gated (v1.1, Flan); its class names begin with `name`."""
    pattern = rf"{_BLOCK}\.DenseReluDense"
    plain = FFNSpec(host=f"{name}DenseActDense", pattern=pattern, up="wi", activation="act", down="wo")
    gated = FFNSpec(
        host=f"{name}DenseGatedActDense", pattern=pattern, up="wi_1", gate="wi_0", activation="act", down="wo"
    )
    return Family(model_type, f"{name}Config", (plain, gated), peft_like="t5", width_field="d_ff")


_SWITCH = FFNSpec(
    host="SwitchTransformersDenseActDense",
    pattern=rf"{_BLOCK}\.mlp(\.experts\.expert_(?P<expert>\d+))?",
    up="wi",
    activation="act",
    down="wo",
)

FAMILIES = (
    _t5_like("t5", "T5"),
    _t5_like("mt5", "MT5"),
    Family(
        "switch_transformers",
        "SwitchTransformersConfig",
        (_SWITCH,),
        router=r".*\.mlp\.router\..*",
        # PEFT knows no Switch. Its modules are T5's: LoRA goes to q and v, IA3 to k, v and each expert's wo.
        peft_like="t5",
        width_field="d_ff",
    ),
)
