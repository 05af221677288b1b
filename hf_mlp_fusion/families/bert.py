"""BERT and the families that copied its layers: one FFN spread over `intermediate` and `output`."""

from .spec import Family, FFNSpec


def bert_like(model_type: str, name: str) -> Family:
    """A family whose layers have BERT's layout.

    Args:
        model_type: The stock config's `model_type`.
        name: What its class names begin with.
    """
    layer = FFNSpec(
        host=f"{name}Layer",
        pattern=r"encoder\.layer\.(?P<layer>\d+)",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
    )
    return Family(
        model_type=model_type,
        config_class=f"{name}Config",
        ffns=(layer,),
        width_field="intermediate_size",
    )


BERT = bert_like("bert", "Bert")
ROBERTA = bert_like("roberta", "Roberta")
