"""Fuses a language model in stages, healed in each, and at once with as many steps: which comes nearer?

    python tests/benchmarks/gradual.py MODEL TRAIN EVAL --stages 0.5,0.25 --steps 100 [--seeds 3] [--device cuda]

Every stage fuses all FFNs to one width (a share of the original's), heals on the original's logits, and exports, to be
fused again; the steps are shared out evenly. Prints perplexities of EVAL as multiples of the unfused model's.
"""

import argparse
import tempfile
import warnings

from transformers.utils import logging as transformers_logging

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data import load_tokenizer, make_batches, read_texts
from hf_mlp_fusion.export import export_plain
from hf_mlp_fusion.measure import language_loss
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.training import tune_model


def main() -> None:
    """Prints a line a way and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("eval")
    parser.add_argument("--stages", type=lambda text: [*map(float, text.split(","))], default=[0.5, 0.25])
    parser.add_argument("--steps", type=int, default=100, help="in all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=512, help="rows to calibrate on")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer, texts = load_tokenizer(options.model), read_texts(options.texts)
    model = load_stock_model(options.model, dtype="float32", device=options.device)
    rows = {"max_length": options.length, "batch_size": 16}
    calibration = make_batches(model, tokenizer, texts, samples=options.samples, **rows)
    held_out = make_batches(model, tokenizer, read_texts(options.eval), samples=96, **rows)
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
