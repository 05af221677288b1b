"""BERT and the encoders after it: an FFN spread over `intermediate` and `output`, or modules of their own."""

from ..spec import Family, FFNSpec

_LAYER = r"encoder\.layer\.(?P<layer>\d+)"


def _bert_like(
    model_type: str, name: str, peft_like: str | None = "bert", lora_targets: tuple[str, ...] | None = None
) -> Family:
    """A family whose layers have BERT's layout; its class names begin with `name`."""
    layer = FFNSpec(
        host=f"{name}Layer",
        pattern=_LAYER,
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
    )
    config = f"{name}Config"
    return Family(
        model_type,
        config,
        (layer,),
        peft_like=peft_like,
        lora_targets=lora_targets,
        width_field="intermediate_size",
    )


_DISTILBERT = FFNSpec(
    host="FFN",
    pattern=r"transformer\.layer\.(?P<layer>\d+)\.ffn",
    up="lin1",
    activation="activation",
    down="lin2",
)
_MODERNBERT = FFNSpec(
    host="ModernBertMLP",
    pattern=r"layers\.(?P<layer>\d+)\.mlp",
    up="Wi",
    packed="halves",
    activation="act",
    down="Wo",
)
_ESM = FFNSpec(
    host="EsmLayer",
    pattern=_LAYER,
    up="intermediate.dense",
    function="gelu",
    down="output.dense",
)

FAMILIES = (
    _bert_like("bert", "Bert"),
    _bert_like("roberta", "Roberta"),
    _bert_like("xlm-roberta", "XLMRoberta"),
    _bert_like("camembert", "Camembert"),
    _bert_like("electra", "Electra"),
    _bert_like("deberta-v2", "DebertaV2", peft_like=None),
    _bert_like("mpnet", "MPNet", peft_like=None, lora_targets=("q", "v")),
    Family(
        "distilbert", "DistilBertConfig", (_DISTILBERT,), lora_targets=("q_lin", "v_lin"), width_field="hidden_dim"
    ),
    Family("modernbert", "ModernBertConfig", (_MODERNBERT,), lora_targets=("Wqkv",), width_field="intermediate_size"),
    Family("esm", "EsmConfig", (_ESM,), peft_like="bert", width_field="intermediate_size"),
)
