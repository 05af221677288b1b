"""GPT-2: one `GPT2MLP` a block, its projections stored transposed (`Conv1D`)."""

from .spec import Family, FFNSpec

GPT2 = Family(
    model_type="gpt2",
    config_class="GPT2Config",
    ffns=(
        FFNSpec(
            host="GPT2MLP",
            pattern=r"h\.(?P<layer>\d+)\.mlp",
            up="c_fc",
            activation="act",
            down="c_proj",
        ),
    ),
    width_field="n_inner",
)
