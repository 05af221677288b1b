"""Switch Transformers: T5's two-matrix FFN without biases, dense in some blocks, experts in others."""

from .spec import Family, FFNSpec

SWITCH = Family(
    model_type="switch_transformers",
    config_class="SwitchTransformersConfig",
    ffns=(
        FFNSpec(
            host="SwitchTransformersDenseActDense",
            pattern=r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d+\.mlp"
            r"(\.experts\.expert_(?P<expert>\d+))?",
            up="wi",
            activation="act",
            down="wo",
        ),
    ),
    router=r".*\.mlp\.router\..*",
    # PEFT knows no Switch. Its modules are T5's: LoRA goes to q and v, IA3 to k, v and each expert's wo.
    peft_like="t5",
    width_field="d_ff",
)
