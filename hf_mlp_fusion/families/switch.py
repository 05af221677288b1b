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
    width_field="d_ff",
)
