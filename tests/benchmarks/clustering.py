"""Ward against scikit-learn's k-means with n_init=30 (the paper's setting), in one run, on the same vectors.

    python tests/benchmarks/clustering.py [--weights FOLDER] [--kmeans-layers N] [--n-init 30]

Clusters the FFNs of layers 4 to 11 of a RoBERTa-base-shaped model, 3072 units of 1537 numbers into 768. Without
--weights the weights are random, which no clustering can do much with. With a folder of a smaller trained RoBERTa
(`roberta-mini`) the vectors are trained ones: units of two layers below each other, their features side by side.
k-means runs on the first N of these layers (it takes minutes each), Ward on all eight.

    python tests/benchmarks/clustering.py --weights FOLDER --sizes 1024,4096,16384

Instead: that many units of a model's FFNs below each other (SmolLM2's have 1728 numbers), a quarter of them kept, by
Ward, Ward on half of them with Lloyd steps on all, Lloyd steps alone from random units (torch), and MiniBatchKMeans.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from transformers import AutoModel, AutoModelForMaskedLM, RobertaConfig, RobertaModel

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


def lloyd(features: torch.Tensor, centres: torch.Tensor, steps: int) -> np.ndarray:
    """Lloyd steps in float32; a cluster that becomes empty keeps its centre."""
    for _ in range(steps + 1):
        norms = centres.square().sum(dim=1)
        labels = torch.cat([(norms - 2 * rows @ centres.T).argmin(dim=1) for rows in features.split(1024)])
        counts = torch.bincount(labels, minlength=len(centres))[:, None]
        sums = torch.zeros_like(centres).index_add_(0, labels, features)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return labels.numpy()


def sampled_ward(features: torch.Tensor, k: int) -> np.ndarray:
    """Ward on half of the units, and Lloyd steps on all from its centroids."""
    chosen = features[torch.randperm(len(features))[: max(k, len(features) // 2)]]
    labels = torch.from_numpy(ward(chosen, k))
    sums = torch.zeros(k, features.shape[1]).index_add_(0, labels, chosen)
    return lloyd(features, sums / torch.bincount(labels)[:, None], 3)


CLUSTERERS: dict[str, Callable[[torch.Tensor, int], np.ndarray]] = {
    "ward": ward,
    "ward on half, lloyd": sampled_ward,
    "lloyd": lambda features, k: lloyd(features, features[torch.randperm(len(features))[:k]], 10),
    "mini-batch": lambda features, k: (
        MiniBatchKMeans(k, n_init=1, batch_size=4096, max_iter=20, random_state=0).fit(features.numpy()).labels_
    ),
}


def compare_sizes(weights: str, sizes: list[int]) -> None:
    """Prints a row for each number of units and way to cluster them."""
    every = torch.cat([ffn.read().features() for ffn in find_ffns(AutoModel.from_pretrained(weights))])
    for size in sizes:
        features = every[:size]
        assert len(features) == size
        for name, clusterer in CLUSTERERS.items():
            if name == "mini-batch" and size > 2048:  # minutes, and the worst of all
                continue
            torch.manual_seed(0)
            started, used = time.perf_counter(), time.process_time()
            labels = np.asarray(clusterer(features, size // 4), dtype=np.int64)
            seconds, cpu = time.perf_counter() - started, time.process_time() - used
            lost = inertia(features, labels)
            row = f"{size} x {features.shape[1]}, {name}"
            print(f"{row}: {seconds:.1f} s ({cpu:.1f} of CPU), inertia {lost:.4f}", flush=True)


def main() -> None:
    """Prints a row a layer, and the ratio of the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights")
    parser.add_argument("--kmeans-layers", type=int, default=1)
    parser.add_argument("--n-init", type=int, default=30)
    parser.add_argument("--sizes")
    options = parser.parse_args()
    if options.sizes:
        compare_sizes(options.weights, [int(size) for size in options.sizes.split(",")])
        return
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
