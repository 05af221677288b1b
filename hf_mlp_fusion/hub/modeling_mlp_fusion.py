"""This model's FFNs are fused. Its classes are those of the package hf_mlp_fusion: pip install hf_mlp_fusion

transformers runs this file for `from_pretrained(..., trust_remote_code=True)`, so that nobody need import the package.
"""

from hf_mlp_fusion import modeling


def __getattr__(name: str) -> type:
    if name.startswith("Fused") and hasattr(modeling, name):
        return getattr(modeling, name)
    raise AttributeError(
        f"this hf_mlp_fusion has no {name}: pip install -U hf_mlp_fusion, or register its family first"
    )
