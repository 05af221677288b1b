"""BART and the encoder-decoders after it, Whisper too: an FFN in the layer itself, a width for each stack."""

from ..spec import Family, FFNSpec


def _bart_like(model_type: str, name: str, encoder_padding: str = "mask") -> Family:
    """A family whose layers have BART's layout; its class names begin with `name`."""
    stacks = [
        FFNSpec(
            host=f"{name}{stack.capitalize()}Layer",
            pattern=rf"(?P<stack>{stack})\.layers\.(?P<layer>\d+)",
            up="fc1",
            activation="activation_fn",
            down="fc2",
            width_field=f"{stack}_ffn_dim",
            padding=padding,
        )
        for stack, padding in (("encoder", encoder_padding), ("decoder", "mask"))
    ]
    return Family(model_type, f"{name}Config", tuple(stacks), peft_like="bart")


FAMILIES = (
    _bart_like("bart", "Bart"),
    _bart_like("mbart", "MBart"),
    _bart_like("marian", "Marian"),
    _bart_like("pegasus", "Pegasus"),
    _bart_like("whisper", "Whisper", encoder_padding="none"),  # half a minute of sound, whatever is in it
)
