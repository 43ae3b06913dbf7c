"""The blocked silhouette against scikit-learn's on the same features, side by side in one run.

    python -m benchmarks.silhouette --output=FILE.json [--samples=50000 --dimension=512
    --classes=10]

Needs no N x N array; peak_gb is the process's peak resident memory, features and libraries
included, first after the blocked runs and then after scikit-learn's.
"""

import json
import os
import resource
import time
from pathlib import Path

import jax
import numpy as np
import sklearn
from absl import app, flags
from sklearn.metrics import silhouette_samples as sklearn_silhouette_samples

from resa_jax.evaluation.silhouette import blocked_silhouette_samples


_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_SAMPLES = flags.DEFINE_integer("samples", 50_000, "Number of features.", lower_bound=2)
_DIMENSION = flags.DEFINE_integer("dimension", 512, "Their size.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 10, "Number of clusters.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 1, "Runs of each; the fastest counts.", lower_bound=1)


def made_up_features(samples: int, dimension: int, classes: int):
    """Unit vectors around one random centre a class, float32, and their classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, samples)
    features = rng.normal(size=(samples, dimension)).astype(np.float32)
    features += rng.normal(size=(classes, dimension)).astype(np.float32)[labels]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, labels


def main(argv):
    del argv
    features, labels = made_up_features(_SAMPLES.value, _DIMENSION.value, _CLASSES.value)
    _, clusters, counts = np.unique(labels, return_inverse=True, return_counts=True)
    runs = {
        "blocked": lambda: blocked_silhouette_samples(features, clusters, counts),
        "scikit_learn": lambda: sklearn_silhouette_samples(features, labels),
    }
    result = {
        "benchmark": "silhouette",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "jax": jax.__version__,
        "scikit_learn": sklearn.__version__,
        "samples": _SAMPLES.value,
        "dimension": _DIMENSION.value,
        "classes": _CLASSES.value,
    }
    values = {}
    for name, run in runs.items():
        seconds = []
        for _ in range(_REPEATS.value):
            start = time.perf_counter()
            values[name] = run()
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
        result[name] = {"seconds": round(min(seconds), 2), "peak_gb": round(peak, 2)}
        print(f"{name}: {min(seconds):.2f} s, peak so far {peak:.2f} GB", flush=True)
    result["largest_difference"] = float(np.abs(values["blocked"] - values["scikit_learn"]).max())
    seconds = [result[name]["seconds"] for name in runs]
    result["scikit_learn_over_blocked"] = round(seconds[1] / max(seconds[0], 0.01), 2)
    print(json.dumps(result, indent=2))
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
