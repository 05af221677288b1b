"""Ward against scikit-learn's k-means with n_init=30 (the paper's setting), in one run, on the same vectors.

    python tests/benchmarks/clustering.py [--weights FOLDER] [--kmeans-layers N] [--n-init 30]

Clusters the FFNs of layers 4 to 11 of a RoBERTa-base-shaped model, 3072 units of 1537 numbers into 768. Without
--weights the weights are random, which no clustering can do much with. With a folder of a smaller trained RoBERTa
(`roberta-mini`) the vectors are trained ones: units of two layers below each other, their features side by side.
k-means runs on the first N of these layers (it takes minutes each), Ward on all eight.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from sklearn.cluster import KMeans
from transformers import AutoModelForMaskedLM, RobertaConfig, RobertaModel

from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.tensors.clustering import inertia, ward

WIDTH, UNITS, FEATURES, LAYERS = 768, 3072, 1537, range(4, 12)


def vectors(weights: str | None) -> list[torch.Tensor]:
    """The sub-MLPs of layers 4 to 11, `[3072, 1537]` each."""
    torch.manual_seed(0)
    if weights is None:
        model = RobertaModel(RobertaConfig())
        return [ffn.read().features() for ffn in find_ffns(model) if ffn.layer in LAYERS]
    trained = [ffn.read().features() for ffn in find_ffns(AutoModelForMaskedLM.from_pretrained(weights))]
    stacked = []
    for layer in LAYERS:
        first, second, third, fourth = (trained[(layer + shift) % len(trained)] for shift in range(4))
        stacked.append(torch.cat([torch.cat([first, second], dim=1), torch.cat([third, fourth], dim=1)])[:, :FEATURES])
    return stacked


def main() -> None:
    """Prints a row a layer, and the ratio of the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights")
    parser.add_argument("--kmeans-layers", type=int, default=1)
    parser.add_argument("--n-init", type=int, default=30)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ward_seconds, kmeans_seconds = [], []
    for number, features in zip(LAYERS, vectors(options.weights), strict=True):
        assert features.shape == (UNITS, FEATURES)
        started = time.perf_counter()
        labels = ward(features, WIDTH)
        ward_seconds.append(time.perf_counter() - started)
        line = f"layer {number}: ward {ward_seconds[-1]:.2f} s, inertia {inertia(features, labels):.4f}"
        if len(kmeans_seconds) < options.kmeans_layers:
            started = time.perf_counter()
            fitted = KMeans(WIDTH, n_init=options.n_init, random_state=0).fit(features.numpy())
            kmeans_seconds.append(time.perf_counter() - started)
            kmeans_inertia = inertia(features, fitted.labels_.astype("int64"))
            line += f"; k-means {kmeans_seconds[-1]:.1f} s, inertia {kmeans_inertia:.4f}"
        print(line, flush=True)
    per_layer = sum(kmeans_seconds) / len(kmeans_seconds)
    print(
        f"ward, 8 layers: {sum(ward_seconds):.1f} s; k-means, n_init={options.n_init}: {per_layer:.0f} s a layer, "
        f"{8 * per_layer:.0f} s for 8; ratio {8 * per_layer / sum(ward_seconds):.0f}"
    )


if __name__ == "__main__":
    main()
