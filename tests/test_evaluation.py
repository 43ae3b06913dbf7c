"""Evaluation protocols against slow NumPy statements and scikit-learn, ties included."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples as sklearn_silhouette_samples,
)

from resa_jax.errors import UserError
from resa_jax.evaluation import clustering, knn, linear, silhouette


def slow_ranking(similarities, train_labels, k, weigh):
    """Ranked classes one query at a time, in plain Python."""
    num_classes = max(train_labels) + 1
    rankings = []
    for row in similarities:
        neighbours = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        votes = [0.0] * num_classes
        for i in neighbours:
            votes[train_labels[i]] += weigh(row[i])
        rankings.append(sorted(range(num_classes), key=lambda c: (-votes[c], c))[:5])
    return np.array(rankings)


def slow_euclidean(train, test):
    return np.array([[-sum((t - q) ** 2) for t in train] for q in test.astype(np.float64)])


def slow_cosine(train, test):
    unit = lambda x: x / max(np.sqrt(sum(x.astype(np.float64) ** 2)), 1e-12)
    return np.array([[round(sum(unit(t) * unit(q)), 12) for t in train] for q in test])


def random_features(n, m, dimension=6, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(n, dimension)).astype(np.float32)
    test = rng.normal(size=(m, dimension)).astype(np.float32)
    return train, rng.integers(0, num_classes, n), test, rng.integers(0, num_classes, m)


def tied_features(n, m, num_classes=7, seed=0):
    """Points on a coarse grid, zero vectors among them: many neighbours at one distance."""
    rng = np.random.default_rng(seed)
    train, test = (rng.integers(-1, 2, (count, 3)).astype(np.float32) for count in (n, m))
    return train, rng.integers(0, num_classes, n), test, rng.integers(0, num_classes, m)


@pytest.mark.parametrize("make", [random_features, tied_features])
@pytest.mark.parametrize("blocks", [(512, 8192), (64, 64)])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_cifar_equals_slow_statement(make, blocks, k, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(knn, "BANK_BLOCK", blocks[1])
    train, train_labels, test, test_labels = make(300, 97)
    expected = slow_ranking(slow_euclidean(train, test), train_labels, k, lambda s: 1.0)
    ranking = knn.knn_cifar_ranking(train, train_labels, test, k=k)
    np.testing.assert_array_equal(ranking, expected)
    accuracy = knn.knn_cifar(train, train_labels, test, test_labels, k=k)
    assert accuracy["top1"] == pytest.approx(100 * np.mean(expected[:, 0] == test_labels))
    hits = [label in row for label, row in zip(test_labels, expected, strict=True)]
    assert accuracy["top5"] == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize("make", [random_features, tied_features])
@pytest.mark.parametrize("blocks", [(512, 8192), (64, 64)])
def test_knn_weighted_equals_slow_statement(make, blocks, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(knn, "BANK_BLOCK", blocks[1])
    train, train_labels, test, test_labels = make(300, 97)
    similarities = slow_cosine(train, test)
    ks = (1, 5, 10, 20)
    rankings = knn.knn_weighted_rankings(train, train_labels, test, ks=ks)
    accuracies = knn.knn_weighted(train, train_labels, test, test_labels, ks=ks)
    for k in ks:
        expected = slow_ranking(similarities, train_labels, k, lambda s: np.exp(s / 0.07))
        np.testing.assert_array_equal(rankings[k], expected)
        top1 = 100 * np.mean(expected[:, 0] == test_labels)
        assert accuracies[k]["top1"] == pytest.approx(top1)


def test_many_copies_of_one_neighbour_are_taken_in_order():
    """More equal neighbours than the search keeps spare, over several blocks: the first vote."""
    rng = np.random.default_rng(0)
    point = rng.normal(size=16).astype(np.float32)
    train = np.concatenate([rng.normal(size=(100, 16)), np.tile(point, (20_000, 1))])
    train = train.astype(np.float32)
    test = np.stack([point, point * np.float32(3)])
    neighbours, _ = knn.nearest_neighbours(train, test[:1], 5, metric="euclidean")
    np.testing.assert_array_equal(neighbours, [[100, 101, 102, 103, 104]])
    neighbours, _ = knn.nearest_neighbours(train, test, 5, metric="cosine")
    np.testing.assert_array_equal(neighbours, [[100, 101, 102, 103, 104]] * 2)


def test_knn_class_rules():
    """Equal votes, and none at all, rank by label, smallest first; one test row is enough."""
    train = np.array([[0.0], [1.0], [2.0], [3.0]])
    train_labels = np.array([6, 4, 4, 6])
    ranking = knn.knn_cifar_ranking(train, train_labels, np.array([[1.5]]), k=4)
    assert ranking.tolist() == [[4, 6, 0, 1, 2]]
    two = knn.knn_cifar_ranking(train, np.array([1, 0, 0, 1]), np.array([[1.4]]), k=4)
    assert two.tolist() == [[0, 1]]


def test_class_that_the_bank_lacks_counts_as_wrong():
    train, train_labels, test, _ = random_features(50, 10)
    accuracy = knn.knn_cifar(train, train_labels, test, np.full(10, 99), k=5)
    assert accuracy == {"top1": 0.0, "top5": 0.0}


def test_fewer_features_than_k_is_refused():
    train, train_labels, test, test_labels = random_features(4, 3)
    with pytest.raises(UserError, match=r"k = 5 .* only 4 features"):
        knn.knn_cifar(train, train_labels, test, test_labels)
    with pytest.raises(UserError, match=r"k = 20 .* only 4 features"):
        knn.knn_weighted(train, train_labels, test, test_labels)


def slow_linear(parameters, orders, features, labels, batch_size):
    """Adam with the L2 term in the gradient, written out in float64 NumPy."""
    kernel, bias = (np.asarray(parameters[name], np.float64) for name in ("kernel", "bias"))
    weights = np.concatenate([kernel, bias[None]])
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    targets = np.eye(weights.shape[1])[labels]
    first, second, count = np.zeros_like(weights), np.zeros_like(weights), 0
    for epoch, order in enumerate(orders):
        rate = 1e-2 * (1e-6 / 1e-2) ** (epoch / len(orders))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            logits = inputs[rows] @ weights
            probabilities = np.exp(logits - logits.max(1, keepdims=True))
            probabilities /= probabilities.sum(1, keepdims=True)
            gradient = inputs[rows].T @ (probabilities - targets[rows]) / len(rows)
            gradient += 5e-6 * weights
            count += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            step = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
            weights = weights - rate * step
    return weights[:-1], weights[-1]


@pytest.mark.parametrize("n", [100, 130])  # 130 leaves a partial batch of 30
def test_linear_cifar_equals_slow_statement(n):
    train, train_labels, test, test_labels = random_features(n, 60, dimension=12, num_classes=6)
    epochs, batch_size, seed = 12, 50, 3
    key = jax.random.key(seed)
    start = linear.initial_linear(jax.random.fold_in(key, 0), 12, 6)
    orders = [
        np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), n))
        for epoch in range(epochs)
    ]
    kernel, bias = slow_linear(start, orders, train, train_labels, batch_size)
    fitted = linear.fit_linear_cifar(
        train, train_labels, num_classes=6, seed=seed, epochs=epochs, batch_size=batch_size
    )
    np.testing.assert_allclose(fitted["kernel"], kernel, atol=2e-5)
    np.testing.assert_allclose(fitted["bias"], bias, atol=2e-5)
    order = np.argsort(-(test @ kernel + bias), axis=1, kind="stable")
    np.testing.assert_array_equal(linear.linear_ranking(fitted, test), order[:, :5])
    accuracy = linear.linear_cifar(
        train, train_labels, test, test_labels, seed=seed, epochs=epochs, batch_size=batch_size
    )
    assert accuracy["top1"] == pytest.approx(100 * np.mean(order[:, 0] == test_labels))
    hits = (order[:, :5] == test_labels[:, None]).any(1)
    assert accuracy["top5"] == pytest.approx(100 * np.mean(hits))


def test_linear_cifar_starts_as_pytorch_does():
    values = linear.initial_linear(jax.random.key(0), 400, 300)
    for value in values.values():
        assert np.abs(value).max() <= 1 / 20
        assert np.std(value) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.05)


def test_linear_cifar_repeats_with_its_seed():
    data = random_features(80, 40)
    fit = lambda seed: linear.fit_linear_cifar(*data[:2], num_classes=7, seed=seed, epochs=3)
    np.testing.assert_array_equal(fit(1)["kernel"], fit(1)["kernel"])
    assert not np.array_equal(fit(1)["kernel"], fit(2)["kernel"])


def test_clustering_equals_scikit_learn():
    features, labels, _, _ = random_features(200, 1, num_classes=4)
    features[:50] += 3 * np.eye(6, dtype=np.float32)[labels[:50]]
    scores = clustering.clustering(features, labels, seed=5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    samples = sklearn_silhouette_samples(unit.astype(np.float64), labels)
    clusters = KMeans(n_clusters=4, n_init=10, random_state=5).fit_predict(unit)
    assert scores["silhouette_mean"] == pytest.approx(samples.mean(), abs=1e-6)
    assert scores["silhouette_std"] == pytest.approx(samples.std(), abs=1e-6)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, clusters), abs=1e-6)
    nmi = normalized_mutual_info_score(labels, clusters)
    assert scores["nmi"] == pytest.approx(nmi, abs=1e-6)


def test_silhouette_of_coinciding_points():
    """Ties: points on a coarse grid, whole clusters in one place, and a cluster of one point."""
    features, labels, _, _ = tied_features(120, 1, num_classes=3)
    features[labels == 2] = features[0]
    labels[7] = 9
    expected = sklearn_silhouette_samples(features, labels)
    np.testing.assert_allclose(silhouette.silhouette_samples(features, labels), expected, atol=1e-6)


def test_clustering_accuracy_is_the_best_matching():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    clusters = np.array([5, 5, 3, 3, 3, 8, 8, 5, 8])  # 5 -> 0, 3 -> 1, 8 -> 2
    assert clustering.partition_agreement(clusters, labels)["accuracy"] == pytest.approx(700 / 9)


def test_clustering_of_one_class_is_refused():
    with pytest.raises(UserError, match="all 8 labels are the same"):
        clustering.clustering(np.ones((8, 2)), np.zeros(8, int))


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize(
    ("n", "num_clusters", "block"), [(300, 5, 64), (256, 3, 64), (333, 80, 32), (100, 4, 128)]
)
def test_blocked_silhouette_equals_scikit_learn(n, num_clusters, block, num_devices, monkeypatch):
    """Odd and even numbers of blocks, padding, more clusters than rows in a block, lone samples."""
    monkeypatch.setattr(silhouette, "BLOCK", block)
    local_devices = jax.local_devices()[:num_devices]
    monkeypatch.setattr(jax, "local_devices", lambda: local_devices)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 16)).astype(np.float32) + 4
    labels = rng.integers(0, num_clusters, n)
    _, clusters, counts = np.unique(labels, return_inverse=True, return_counts=True)
    result = silhouette.blocked_silhouette_samples(features, clusters, counts)
    expected = sklearn_silhouette_samples(features.astype(np.float64), labels)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_compare_features_of_two_images():
    features, labels = np.eye(2, 5), np.array([0, 1])
    table = clustering.compare_features({"raw": features}, labels)
    assert table["raw"]["knn_top1"] in (0, 100) and table["raw"]["ari"] == 1


def test_k_means_of_points_that_are_all_one_is_silent(recwarn):
    scores = clustering.clustering(np.ones((9, 4)), np.arange(9) % 3)
    assert scores["ari"] == 0 and not recwarn.list


def test_compare_features_uses_the_fixed_split():
    bank, test = clustering.fixed_split(1797)
    assert (len(bank), len(test)) == (1437, 360)
    assert sorted([*bank, *test]) == list(range(1797))
    np.testing.assert_array_equal(bank, np.random.default_rng(0).permutation(1797)[:1437])

    features, labels, _, _ = random_features(200, 1, num_classes=3)
    table = clustering.compare_features({"raw": features, "longer": 7 * features}, labels)
    for name in ("silhouette_mean", "ari", "knn_top1"):
        assert table["raw"][name] == pytest.approx(table["longer"][name])
    text = clustering.format_table(table)
    assert [line.split()[0] for line in text.splitlines()] == ["silhouette", "raw", "longer"]


@pytest.mark.parametrize("spread", [0, 1e-30, 1e-5, 1e-3])
def test_blocked_silhouette_near_collapse(spread, monkeypatch):
    """Clusters that lie on one another, far apart from others: float32 alone is off by up to 1."""
    monkeypatch.setattr(silhouette, "BLOCK", 64)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 20, 500)
    places = generator.normal(size=(5, 32))[labels % 5]
    features = np.float32(places + spread * generator.normal(size=(500, 32)))
    _, clusters, counts = np.unique(labels, return_inverse=True, return_counts=True)
    result = silhouette.blocked_silhouette_samples(features, clusters, counts)
    expected = sklearn_silhouette_samples(features.astype(np.float64), labels)
    if spread < 1e-20:  # (b - a) / max(a, b) of what is 0 but for rounding
        assert np.abs(result).max() <= 1
    else:
        np.testing.assert_allclose(result, expected, atol=1e-5)
    everything_tiny = np.float32(1e-30) * features
    assert np.isfinite(
        silhouette.blocked_silhouette_samples(everything_tiny, clusters, counts)
    ).all()


@pytest.mark.slow
def test_silhouette_benchmark(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.silhouette", f"--output={output}"]
    sizes = ["--samples=3000", "--dimension=8", "--classes=5"]
    root = Path(__file__).resolve().parent.parent
    subprocess.run([*command, *sizes], cwd=root, check=True, capture_output=True, timeout=120)
    result = json.loads(output.read_text())
    assert result["largest_difference"] < 1e-5
    assert result["samples"] == 3000 and result["blocked"]["seconds"] > 0
