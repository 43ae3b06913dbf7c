"""ReSA's assignment and loss over blocks of columns, for batches whose m x m arrays are too large.

The assignment is kept as the two potentials of Sinkhorn-Knopp (Cuturi, "Sinkhorn Distances",
NeurIPS 2013): A_ij = exp(s_ij / epsilon + r_i + c_j). Every use makes it anew, block by block, as
the logits are, and so does the backward pass; the sums over columns are streamed (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018). The numbers are those of `resa`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import matmul, normalize, other_view_pairs
from resa_jax.sharding import gather_rows, shard_rows


# A device's part of one m x m float32 array from which blocks are worth their products.
PLAIN_BYTES = 512 * 2**20


class Potentials(NamedTuple):
    """An assignment A_ij = exp(x_i . y_j / epsilon + rows_i + columns_j), never stored.

    Attributes:
      x, y: of unit length, without gradient; the rows of y whole on every device.
      rows, columns: potentials.
      epsilon: of Sinkhorn-Knopp.
    """

    x: Float[Array, "m f"]
    y: Float[Array, "m f"]
    rows: Float[Array, " m"]
    columns: Float[Array, " m"]
    epsilon: float

    def log_block(self, y: Float[Array, "b f"], columns: Float[Array, " b"]) -> Float[Array, "m b"]:
        """The logarithm of a block of columns."""
        return _products(self.x, y) / self.epsilon + self.rows[:, None] + columns


def block_size(batch_size: int, devices: int, limit: int = PLAIN_BYTES) -> int | None:
    """Columns at a time, a divisor of the batch; None where the whole is small enough."""
    row_bytes = 4 * batch_size // devices
    if row_bytes * batch_size <= limit:
        return None
    fitting = max(limit // (8 * row_bytes), 1)
    return max(size for size in range(1, fitting + 1) if batch_size % size == 0)


def sinkhorn_potentials(
    x: Float[Array, "m f"],
    y: Float[Array, "m f"],
    epsilon: float,
    block: int,
    num_iterations: int = 3,
) -> Potentials:
    """The assignment that `resa.sinkhorn_knopp` makes of the cosines of x and y."""
    x, y = jax.lax.stop_gradient((shard_rows(normalize(x)), gather_rows(normalize(y))))
    zeros = jnp.zeros(len(x), x.dtype)
    found = Potentials(x, y, zeros, zeros, epsilon)
    blocks = _split(y, block)
    for _ in range(num_iterations):
        bare = found._replace(columns=zeros)
        sums = jax.lax.map(
            lambda y, bare=bare: jax.nn.logsumexp(bare.log_block(y, zeros[:block]), axis=0), blocks
        )
        columns = -sums.reshape(-1)
        bare = found._replace(rows=zeros)
        logs = lambda y, c, bare=bare: bare.log_block(y, c)
        rows = -_row_logsumexp(logs, blocks, _split(columns, block))
        found = found._replace(rows=rows, columns=columns)
    return found


def blocked_resa_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    momentum_embeddings: Sequence[Float[Array, "m d"]],
    assignment: Potentials,
    block: int,
    temperature: float = 0.4,
    symmetric: bool = False,
) -> Float[Array, ""]:
    """`resa.resa_loss` with an assignment that is not stored."""
    targets = [jax.lax.stop_gradient(z) for z in momentum_embeddings]
    terms = [
        _cross_entropy(normalize(z), normalize(y), assignment, block, temperature, symmetric)
        for z, y in other_view_pairs(embeddings, targets)
    ]
    return jnp.asarray(sum(terms)) / len(terms)


def assignment_figures(
    assignment: Potentials, block: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean of the diagonal and the mean entropy of a row, in nats."""
    own = jnp.sum(assignment.x * assignment.y, axis=1) / assignment.epsilon
    diagonal = jnp.mean(jnp.exp(own + assignment.rows + assignment.columns))

    def add(total, item):
        logs = assignment.log_block(*item)
        return total - jnp.sum(jnp.exp(logs) * logs), None

    items = _split(assignment.y, block), _split(assignment.columns, block)
    total, _ = jax.lax.scan(add, jnp.zeros((), assignment.x.dtype), items)
    return diagonal, total / len(assignment.x)


def _cross_entropy(x, y, assignment, block, temperature, symmetric):
    x, y = shard_rows(x), gather_rows(y)

    @jax.checkpoint
    def add(carry, item):
        y, assigned_y, columns = item
        highest, total, weight, product, over_columns = carry
        logits = _products(x, y) / temperature
        weights = jnp.exp(assignment.log_block(assigned_y, columns))
        higher = jnp.maximum(highest, jax.lax.stop_gradient(jnp.max(logits, axis=1)))
        total = total * jnp.exp(highest - higher)
        total = total + jnp.sum(jnp.exp(logits - higher[:, None]), axis=1)
        weight = weight + jnp.sum(weights, axis=1)
        product = product + jnp.sum(weights * logits, axis=1)
        if symmetric:
            over_columns = over_columns - jnp.sum(weights * jax.nn.log_softmax(logits, axis=0))
        return (higher, total, weight, product, over_columns), None

    zeros = jnp.zeros(len(x), x.dtype)
    start = zeros - jnp.inf, zeros, zeros, zeros, jnp.zeros((), x.dtype)
    items = tuple(_split(a, block) for a in (y, assignment.y, assignment.columns))
    (highest, total, weight, product, over_columns), _ = jax.lax.scan(add, start, items)
    over_rows = jnp.sum(weight * (jnp.log(total) + highest) - product)
    return ((over_rows + over_columns) / 2 if symmetric else over_rows) / len(x)


def _row_logsumexp(logs: Callable, *items):
    """Over all columns, each row's; `logs(*item)` is a block."""

    def add(carry, item):
        highest, total = carry
        block = logs(*item)
        higher = jnp.maximum(highest, jnp.max(block, axis=1))
        total = total * jnp.exp(highest - higher) + jnp.sum(
            jnp.exp(block - higher[:, None]), axis=1
        )
        return (higher, total), None

    count = jax.eval_shape(logs, *(array[0] for array in items))
    start = jnp.full(count.shape[0], -jnp.inf, count.dtype), jnp.zeros(count.shape[0], count.dtype)
    (highest, total), _ = jax.lax.scan(add, start, items)
    return jnp.log(total) + highest


def _products(x, y):
    return shard_rows(matmul(x, y.T))


def _split(array, block):
    return array.reshape(-1, block, *array.shape[1:])
