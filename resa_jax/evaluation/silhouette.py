"""Exact Euclidean silhouette without the matrix of all distances.

Pairs are visited tile by tile, each unordered pair of blocks once: block i meets blocks i, i + 1,
... half way round the circle, so every row of blocks has the same work and the rows can be shared
out over devices. Rows are sorted by label, so that a tile meets few clusters and its sums by
cluster are one narrow matrix product.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int, Num

from resa_jax.errors import UserError


# Below this, scikit-learn's float64 is as fast and exact for coinciding points too.
DENSE_ROWS = 4096
BLOCK = 1024
_CLOSE = 1e-3  # of squared distances, as a share of the squares that they are the difference of


def silhouette_samples(
    features: Num[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Silhouette of each sample with the labels as clusters, Euclidean distance.

    (b - a) / max(a, b) with a the mean distance to the rest of its cluster and b the least mean
    distance to another one; 0 for the only sample of a cluster. Same values as scikit-learn's to
    1e-5.

    Raises:
      UserError: fewer than two distinct labels.
    """
    classes, clusters, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            "a silhouette needs at least two distinct labels, but all labels are the same."
        )
    if len(classes) == len(labels):
        return np.zeros(
            len(labels)
        )  # each sample is alone in its cluster; scikit-learn refuses that
    if len(labels) < DENSE_ROWS:
        from sklearn import metrics  # see `clustering`

        return metrics.silhouette_samples(features.astype(np.float64), labels)
    return blocked_silhouette_samples(features, clusters, counts)


def blocked_silhouette_samples(
    features: Num[np.ndarray, "n d"], clusters: Int[np.ndarray, " n"], counts: Int[np.ndarray, " c"]
) -> Float[np.ndarray, " n"]:
    """`silhouette_samples` in float32 tiles over all local devices; counts: the clusters' sizes.

    Where points are so close to one another that float32 would lose their distances, as near
    collapse, the same in float64 on the CPU.
    """
    order = np.argsort(clusters, kind="stable")
    # The silhouette does not change when all points move together or are scaled; about the mean the
    # squares lose the least to rounding, and scaled none is lost.
    centred = features[order] - features.mean(0, dtype=np.float64)
    centred /= np.abs(centred).max() or 1
    found, close = _distance_sums(centred.astype(np.float32), clusters[order], jax.local_devices())
    if close > len(order):  # a few duplicates do no harm
        with jax.enable_x64(True):
            found, _ = _distance_sums(centred, clusters[order], jax.local_devices(backend="cpu"))
    sums = np.empty_like(found)
    sums[order] = found
    own = np.take_along_axis(sums, clusters[:, None], 1)[:, 0]
    alone = counts[clusters] == 1
    a = own / np.maximum(counts[clusters] - 1, 1)
    means = sums / counts
    np.put_along_axis(means, clusters[:, None], np.inf, 1)
    b = means.min(1)
    return np.where(alone, 0.0, (b - a) / np.maximum(np.maximum(a, b), np.finfo(np.float32).tiny))


def _distance_sums(
    features: Float[np.ndarray, "n d"], clusters: Int[np.ndarray, " n"], devices: list[jax.Device]
) -> tuple[Float[np.ndarray, "n c"], float]:
    """Sum of each row's distances to each cluster, the rows sorted by cluster.

    Also how many pairs of different rows are so close that their distance is lost to rounding.
    """
    n, num_clusters = len(features), int(clusters[-1]) + 1
    blocks = -(-n // BLOCK)
    blocks += -blocks % len(devices)
    points = np.zeros((blocks * BLOCK, features.shape[1]), features.dtype)
    points[:n] = features
    padded = np.full(blocks * BLOCK, -1, np.int32)
    padded[:n] = clusters
    starts = clusters[np.minimum(np.arange(blocks) * BLOCK, n - 1)]
    stops = clusters[np.minimum(np.arange(1, blocks + 1) * BLOCK, n) - 1]
    width = int((stops - starts).max()) + 1
    mesh = jax.make_mesh((len(devices),), ("rows",), devices=devices, axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):  # also inside a run, which has a mesh of its own
        sums, close = _tiles(
            jnp.asarray(points.reshape(blocks, BLOCK, -1)),
            jnp.asarray(padded.reshape(blocks, BLOCK)),
            jnp.asarray(starts),
            num_clusters=num_clusters,
            width=width,
            mesh=mesh,
        )
    return np.asarray(sums).reshape(blocks * BLOCK, -1)[:n, :num_clusters], float(close)


@partial(jax.jit, static_argnames=("num_clusters", "width", "mesh"))
def _tiles(
    points: Float[Array, "blocks b d"],
    clusters: Int[Array, "blocks b"],
    starts: Int[Array, " blocks"],
    *,
    num_clusters: int,
    width: int,
    mesh: jax.sharding.Mesh,
) -> tuple[Float[Array, "blocks b c"], Float[Array, ""]]:
    blocks, size, _ = points.shape
    squares = jnp.square(points).sum(-1)
    # Column j of block i's indicator: is the row's cluster starts[i] + j? Padding rows (cluster -1)
    # match none.
    indicators = (clusters - starts[:, None])[:, :, None] == jnp.arange(width)
    indicators = jnp.where(clusters[:, :, None] < 0, False, indicators).astype(points.dtype)
    offsets = blocks // 2 + 1

    def add(sums, i, j, part):
        """sums[i, :, clusters of block j] += part."""
        old = jax.lax.dynamic_slice(sums, (i, 0, starts[j]), (1, size, width))
        return jax.lax.dynamic_update_slice(sums, old + part[None], (i, 0, starts[j]))

    def tile(carry, pair):
        sums, close = carry
        i, offset = pair // offsets, pair % offsets
        j = (i + offset) % blocks
        product = jnp.matmul(points[i], points[j].T, precision=jax.lax.Precision.HIGHEST)
        scale = squares[i][:, None] + squares[j]
        squared = jnp.maximum(scale - 2 * product, 0)
        same_point = (i == j) & jnp.eye(size, dtype=bool)
        there = (clusters[i][:, None] >= 0) & (clusters[j] >= 0) & ~same_point
        close += (there & (squared < _CLOSE * scale)).sum(dtype=points.dtype)
        distances = jnp.where(same_point, 0, jnp.sqrt(squared))
        sums = add(sums, i, j, distances @ indicators[j])
        # The tile's transpose serves block j; not on the diagonal, nor half way round, where j
        # visits i itself.
        once = (offset > 0) & (2 * offset != blocks)
        return (add(sums, j, i, (distances.T @ indicators[i]) * once), close), None

    def rows(own_blocks):
        pairs = (own_blocks[:, None] * offsets + jnp.arange(offsets)).reshape(-1)
        empty = jnp.zeros((blocks, size, num_clusters + width), points.dtype)
        totals, _ = jax.lax.scan(tile, (empty, jnp.zeros((), points.dtype)), pairs)
        return jax.lax.psum(totals, "rows")

    shared = jax.shard_map(
        rows, mesh=mesh, in_specs=PartitionSpec("rows"), out_specs=PartitionSpec(), check_vma=False
    )
    return shared(jnp.arange(blocks, dtype=jnp.int32))
