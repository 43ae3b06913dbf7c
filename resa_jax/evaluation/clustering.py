"""How well features cluster by class: silhouette, k-means, and a table comparing encoders.

scikit-learn is imported where it is used, since no run needs it before its first evaluation.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from resa_jax.errors import UserError
from resa_jax.evaluation.knn import knn_cifar, l2_normalize
from resa_jax.evaluation.silhouette import silhouette_samples


def clustering(
    features: Num[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
    num_init: int = 10,
) -> dict[str, float]:
    """Agreement of the features' geometry with the labels, on L2-normalised features.

    Args:
      features: one row per sample.
      labels: the classes, any integers; at least two distinct ones.
      seed, num_init: random_state and n_init of k-means.

    Returns:
      silhouette_mean, silhouette_std: over samples, the labels taken as clusters, Euclidean
        distance.
      ari, nmi: of the labels and scikit-learn's k-means (as many clusters as classes).
      accuracy: percent of samples whose cluster is matched with their class, by the best
        one-to-one matching.

    Raises:
      UserError: labels of one class only, which leave nothing to separate.

    Source: paper, appendix A and Figure 3.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError(
            f"clustering compares classes, but all {len(labels)} labels are the same; "
            "give at least two classes."
        )
    normalised = l2_normalize(features).astype(np.float32)
    silhouettes = silhouette_samples(normalised, labels)
    clusters = k_means(normalised, len(classes), seed=seed, num_init=num_init).labels_
    return {
        "silhouette_mean": float(silhouettes.mean()),
        "silhouette_std": float(silhouettes.std()),
        **partition_agreement(clusters, labels),
    }


def k_means(points: Float[np.ndarray, "n d"], number: int, *, seed: int, num_init: int = 10) -> Any:
    """scikit-learn's `KMeans`, fitted; silent where the points are fewer than the clusters."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(number, n_init=num_init, random_state=seed).fit(points)


def partition_agreement(
    clusters: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """The ari, nmi and accuracy of `clustering` for given clusters."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "accuracy": 100.0 * float(counts[rows, columns].sum() / len(labels)),
    }


def fixed_split(n: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Indices of a fixed split of n samples: default_rng(0)'s permutation, cut at floor(0.8 n)."""
    order = np.random.default_rng(0).permutation(n)
    return order[: n * 4 // 5], order[n * 4 // 5 :]


def compare_features(
    rows: dict[str, Num[np.ndarray, "n _"]], labels: Int[np.ndarray, " n"], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The same scores for several features of the same samples, such as pixels and two encoders.

    Args:
      rows: name -> features; L2-normalised here.
      labels: the classes of the samples.
      seed: of k-means.

    Returns:
      name -> the scores of `clustering`, and knn_top1: 5-NN accuracy in percent (`knn_cifar` on
      the normalised features) on `fixed_split`. `format_table` prints them.
    """
    bank, test = fixed_split(len(labels))
    table = {}
    for name, features in rows.items():
        unit = l2_normalize(features)
        k = min(5, len(bank))
        scores = knn_cifar(unit[bank], labels[bank], unit[test], labels[test], k=k)
        table[name] = clustering(features, labels, seed=seed) | {"knn_top1": scores["top1"]}
    return table


def format_table(table: dict[str, dict[str, float]]) -> str:
    """`compare_features` as text: one row per features, one column per score."""
    columns = {
        "silhouette_mean": ("silhouette", "{:z.3f}"),
        "ari": ("ARI", "{:z.3f}"),
        "nmi": ("NMI", "{:z.3f}"),
        "accuracy": ("cluster acc. %", "{:.1f}"),
        "knn_top1": ("5-NN acc. %", "{:.1f}"),
    }
    width = max(len(name) for name in table)
    lines = [" " * width + "".join(f"  {title:>14}" for title, _ in columns.values())]
    for name, scores in table.items():
        cells = [style.format(scores[key]) for key, (_, style) in columns.items()]
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>14}" for cell in cells))
    return "\n".join(lines)
