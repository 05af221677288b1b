"""Encoders of sound. (Whisper is in `bart`.)"""

from ..spec import Family, FFNSpec

_WAV2VEC2 = FFNSpec(
    host="Wav2Vec2FeedForward",
    pattern=r"encoder\.layers\.(?P<layer>\d+)\.feed_forward",
    up="intermediate_dense",
    activation="intermediate_act_fn",
    down="output_dense",
    padding="cut",  # the mask has a number for each sample of sound, not for each frame
)

FAMILIES = (
    Family(
        "wav2vec2", "Wav2Vec2Config", (_WAV2VEC2,), lora_targets=("q_proj", "v_proj"), width_field="intermediate_size"
    ),
)
