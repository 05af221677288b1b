"""Fuses a language model in stages, healed in each, and at once with as many steps: which comes nearer?

    python tests/benchmarks/gradual.py MODEL TRAIN EVAL --stages 0.5,0.25 --steps 100 [--seeds 3] [--device cuda]

Every stage fuses all FFNs to one width (a share of the original's), heals on the original's logits, and exports, to be
fused again; the steps are shared out evenly. Prints perplexities of EVAL as multiples of the unfused model's.
"""

import tempfile

from healing import inputs_parser, opened

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.export import export_plain
from hf_mlp_fusion.measure import language_loss
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.training import tune_model


def main() -> None:
    """Prints a line a way and seed."""
    parser = inputs_parser(__doc__)
    parser.add_argument("--stages", type=lambda text: [*map(float, text.split(","))], default=[0.5, 0.25])
    parser.add_argument("--steps", type=int, default=100, help="in all")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    tokenizer, texts, model, calibration, held_out = opened(options)
    unfused = language_loss(model, held_out).perplexity
    for seed in range(options.seeds):
        for stages in (options.stages[-1:], options.stages):
            start, before, told = model, 1.0, []
            for stage in stages:
                fused = fuse_model(start, FusionConfig(width=stage / before), calibration=calibration)
                told.append(f"{stage} fused {language_loss(fused, held_out).perplexity / unfused:.3f}")
                sizes = {"steps": options.steps // len(stages), "max_length": options.length, "seed": seed}
                tune_model(fused, model, texts, tokenizer, target="logits", **sizes)
                told.append(f"healed {language_loss(fused, held_out).perplexity / unfused:.3f}")
                with tempfile.TemporaryDirectory() as folder:
                    export_plain(fused, folder)
                    start, before = load_stock_model(folder, dtype="float32", device=options.device), stage
            print(f"seed {seed}, {len(stages)} stages: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
