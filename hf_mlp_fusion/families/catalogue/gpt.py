"""GPT-2 and the causal models after it whose FFN is two matrices."""

from ..spec import Family, FFNSpec

_H = r"h\.(?P<layer>\d+)\.mlp"
_LAYERS = r"layers\.(?P<layer>\d+)\.mlp"


def _mlp(host: str, pattern: str, up: str, activation: str, down: str) -> tuple[FFNSpec]:
    return (FFNSpec(host=host, pattern=pattern, up=up, activation=activation, down=down),)


_4H = ("dense_h_to_4h", "act", "dense_4h_to_h")

FAMILIES = (
    # GPT-2's projections are stored transposed (`Conv1D`).
    Family("gpt2", "GPT2Config", _mlp("GPT2MLP", _H, "c_fc", "act", "c_proj"), width_field="n_inner"),
    Family("gpt_neo", "GPTNeoConfig", _mlp("GPTNeoMLP", _H, "c_fc", "act", "c_proj"), width_field="intermediate_size"),
    Family("gpt_neox", "GPTNeoXConfig", _mlp("GPTNeoXMLP", _LAYERS, *_4H), width_field="intermediate_size"),
    Family("gptj", "GPTJConfig", _mlp("GPTJMLP", _H, "fc_in", "act", "fc_out"), width_field="n_inner"),
    Family(
        "phi", "PhiConfig", _mlp("PhiMLP", _LAYERS, "fc1", "activation_fn", "fc2"), width_field="intermediate_size"
    ),
    Family("falcon", "FalconConfig", _mlp("FalconMLP", _H, *_4H), width_field="ffn_hidden_size"),
    Family(
        "bloom",
        "BloomConfig",
        _mlp("BloomMLP", _H, "dense_h_to_4h", "gelu_impl", "dense_4h_to_h"),
        note="no plain export, for a stock Bloom is always four times as wide as its hidden size",
    ),
    Family(
        "starcoder2",
        "Starcoder2Config",
        _mlp("Starcoder2MLP", _LAYERS, "c_fc", "act", "c_proj"),
        peft_like="llama",
        width_field="intermediate_size",
    ),
    Family(
        "opt",
        "OPTConfig",
        _mlp("OPTDecoderLayer", r"decoder\.layers\.(?P<layer>\d+)", "fc1", "activation_fn", "fc2"),
        width_field="ffn_dim",
    ),
)
