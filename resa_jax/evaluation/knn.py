"""Nearest-neighbour classification of frozen features.

Two protocols: `knn_cifar` (the authors' CIFAR code: k = 5, Euclidean distance on raw features,
majority vote) and `knn_weighted` (the authors' ImageNet code: cosine similarity s, votes weighted
by exp(s / 0.07)).

Rules where the authors' code leaves the result open:
- Neighbours at equal distance: the lower index in the training set comes first.
- Classes are ordered by their votes; equal votes, and classes without any vote, follow in the order
  of their labels, smallest first. Top-1 and top-5 read that order.
- Any number of test rows, from one upwards. A class that the training set lacks receives no vote.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from resa_jax.errors import UserError


# Neighbours are searched in float32, and this many more than needed are then put in order in
# float64, so that rounding in the search does not decide which neighbours are taken.
SPARE_NEIGHBOURS = 16
QUERY_BLOCK = 512
BANK_BLOCK = 8192


def knn_cifar(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Num[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    k: int = 5,
) -> dict[str, float]:
    """Accuracy of the majority vote of the k nearest training features, Euclidean, unnormalised.

    Args:
      train, train_labels: the features that vote and their classes (integers from 0).
      test, test_labels: the features to classify and their true classes.
      k: number of neighbours.

    Returns:
      {"top1": percent, "top5": percent}.

    Raises:
      UserError: fewer than k training features.

    Source: resa_cifar, eval/evaluate.py; Table 1's 5-NN.
    """
    ranking = knn_cifar_ranking(train, train_labels, test, k=k)
    return topk_accuracy(ranking, test_labels)


def knn_cifar_ranking(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Num[np.ndarray, "m d"],
    *,
    k: int = 5,
) -> Int[np.ndarray, "m r"]:
    """The first five classes of `knn_cifar` for each test row; column 0 is the prediction."""
    check_neighbours(len(train), k)
    neighbours, _ = nearest_neighbours(train, test, k, metric="euclidean")
    votes = np.ones(neighbours.shape)
    return _rank_classes(train_labels[neighbours], votes, int(train_labels.max()) + 1)


def knn_weighted(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Num[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    ks: tuple[int, ...] = (5, 10, 20),
    temperature: float = 0.07,
) -> dict[int, dict[str, float]]:
    """Accuracy of k nearest neighbours by cosine similarity s, with votes exp(s / temperature).

    Args:
      train, train_labels: the features that vote and their classes (integers from 0);
        L2-normalised here.
      test, test_labels: the features to classify and their true classes.
      ks: the numbers of neighbours to report.
      temperature: of the votes.

    Returns:
      {k: {"top1": percent, "top5": percent}} for each k of ks.

    Raises:
      UserError: fewer than max(ks) training features.

    Source: resa, eval_knn.py; Tables 3 and 6.
    """
    rankings = knn_weighted_rankings(train, train_labels, test, ks=ks, temperature=temperature)
    return {k: topk_accuracy(ranking, test_labels) for k, ranking in rankings.items()}


def knn_weighted_rankings(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Num[np.ndarray, "m d"],
    *,
    ks: tuple[int, ...] = (5, 10, 20),
    temperature: float = 0.07,
) -> dict[int, Int[np.ndarray, "m r"]]:
    """For each k the first five classes of `knn_weighted` for each test row, best first."""
    check_neighbours(len(train), max(ks))
    neighbours, similarities = nearest_neighbours(train, test, max(ks), metric="cosine")
    labels, num_classes = train_labels[neighbours], int(train_labels.max()) + 1
    votes = np.exp(similarities / temperature)
    return {k: _rank_classes(labels[:, :k], votes[:, :k], num_classes) for k in ks}


def topk_accuracy(
    ranking: Int[np.ndarray, "m r"], labels: Int[np.ndarray, " m"]
) -> dict[str, float]:
    """Percent of rows whose label is the first (top1) or among the first five (top5) ranked."""
    hits = ranking == labels[:, None]
    return {
        "top1": 100.0 * float(hits[:, 0].mean()),
        "top5": 100.0 * float(hits[:, :5].any(axis=1).mean()),
    }


def l2_normalize(features: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of unit length in float64, the norm taken as at least 1e-12."""
    features = features.astype(np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def check_neighbours(num_train: int, k: int) -> None:
    """UserError if the training set has fewer than k features."""
    if num_train < k:
        raise UserError(
            f"k = {k} neighbours were asked for, but the training set has only {num_train} "
            f"features; give at least {k} or a smaller k."
        )


def nearest_neighbours(
    bank: Num[np.ndarray, "n d"], queries: Num[np.ndarray, "m d"], k: int, *, metric: str
) -> tuple[Int[np.ndarray, "m k"], Float[np.ndarray, "m k"]]:
    """The k nearest bank rows of each query, nearest first; equal ones in the order of the bank.

    Memory on the device: the queries, one block of the bank and one block of distances, so
    1.28 M x 2048 against 50,000 queries fits.

    Args:
      bank, queries: features of any numeric type.
      k: at most the number of bank rows.
      metric: "euclidean" (on the features as they are) or "cosine".

    Returns:
      Bank indices int64, and float64 similarities, greatest first: the cosine (rounded to 1e-12,
      so that similarities equal but for rounding are equal), or minus the squared Euclidean
      distance.
    """
    candidates = _search(bank, queries, min(k + SPARE_NEIGHBOURS, len(bank)), metric)
    scores = _exact_scores(bank, queries, candidates, metric)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(scores, order, 1)


def _search(bank: np.ndarray, queries: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Indices [m, k] of the best in float32, the bank streamed through the device in blocks."""
    dimension = bank.shape[1]
    query_block = _block_size(len(queries), QUERY_BLOCK)
    bank_block = _block_size(len(bank), BANK_BLOCK)
    num_blocks = -(-len(queries) // query_block)
    padded = np.zeros((num_blocks * query_block, dimension), np.float32)
    # -|q - b|^2 = 2 q.b - |b|^2 - |q|^2, of which the last shifts all of a query's scores alike and
    # is left out.
    padded[: len(queries)] = _prepare(queries, metric) * (2 if metric == "euclidean" else 1)
    blocks = jnp.asarray(padded.reshape(num_blocks, query_block, dimension))
    values = jnp.full((num_blocks, query_block, k), -jnp.inf, jnp.float32)
    indices = jnp.zeros((num_blocks, query_block, k), jnp.int32)
    for start in range(0, len(bank), bank_block):
        rows = bank[start : start + bank_block]
        block = np.zeros((bank_block, dimension), np.float32)
        block[: len(rows)] = _prepare(rows, metric)
        offsets = np.full(bank_block, -np.inf, np.float32)
        offsets[: len(rows)] = -np.square(block[: len(rows)]).sum(1) if metric == "euclidean" else 0
        values, indices = _merge_block(values, indices, blocks, block, offsets, start)
    return np.asarray(indices).reshape(-1, k)[: len(queries)].astype(np.int64)


def _prepare(rows: np.ndarray, metric: str) -> np.ndarray:
    # Normalised in float64: rows that differ in length alone become equal in float32 too, and tie.
    return (l2_normalize(rows) if metric == "cosine" else rows).astype(np.float32)


def _block_size(n: int, largest: int) -> int:
    # Whole multiples of 64 keep every product in the same inner loop of the matrix product, so that
    # equal rows get equal results wherever they stand.
    return min(largest, -(-n // 64) * 64)


@partial(jax.jit, donate_argnums=(0, 1))
def _merge_block(
    values: Float[Array, "b q k"],
    indices: Int[Array, "b q k"],
    queries: Float[Array, "b q d"],
    bank: Float[Array, "n d"],
    offsets: Float[Array, " n"],
    start: int | Int[Array, ""],
) -> tuple[Float[Array, "b q k"], Int[Array, "b q k"]]:
    """Running top k over one more block of the bank; top_k keeps the earlier of equal values."""

    def merge(block):
        old_values, old_indices, q = block
        products = jnp.matmul(q, bank.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.concatenate([old_values, products + offsets], axis=1)
        new_values, places = jax.lax.top_k(scores, values.shape[-1])
        numbers = jnp.broadcast_to(jnp.arange(len(bank), dtype=jnp.int32) + start, products.shape)
        return new_values, jnp.take_along_axis(
            jnp.concatenate([old_indices, numbers], axis=1), places, axis=1
        )

    return jax.lax.map(merge, (values, indices, queries))


def _exact_scores(
    bank: np.ndarray, queries: np.ndarray, candidates: np.ndarray, metric: str
) -> np.ndarray:
    """float64 similarities [m, k] of each query with its candidates."""
    scores = np.empty(candidates.shape)
    rows = max(1, 4_000_000 // (candidates.shape[1] * bank.shape[1]))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        near = bank[candidates[part]].astype(np.float64)
        query = queries[part].astype(np.float64)[:, None]
        if metric == "euclidean":
            scores[part] = -np.square(near - query).sum(-1)
        else:
            near /= np.maximum(np.linalg.norm(near, axis=-1, keepdims=True), 1e-12)
            query /= np.maximum(np.linalg.norm(query, axis=-1, keepdims=True), 1e-12)
            scores[part] = np.round((near * query).sum(-1), 12)
    return scores


def _rank_classes(labels: np.ndarray, votes: np.ndarray, num_classes: int) -> np.ndarray:
    """First five classes [m, min(5, num_classes)] by the sum of their votes, then by label.

    labels, votes: [m, k], the class and the vote of each neighbour. Votes are added in the
    neighbours' order.
    """
    ranking = np.empty((len(labels), min(5, num_classes)), np.int64)
    rows = max(1, 10_000_000 // num_classes)
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        totals = np.zeros((len(labels[part]), num_classes))
        for column in range(labels.shape[1]):
            totals[np.arange(len(totals)), labels[part, column]] += votes[part, column]
        order = np.argsort(-totals, axis=1, kind="stable")
        ranking[part] = order[:, : ranking.shape[1]]
    return ranking
