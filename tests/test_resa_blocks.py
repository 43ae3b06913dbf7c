"""The assignment and loss in blocks of columns are those of whole arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax.methods import resa
from resa_jax.methods.interface import Moment, Outputs
from resa_jax.methods.resa import ReSA
from resa_jax.methods.resa_blocks import (
    assignment_figures,
    block_size,
    blocked_resa_loss,
    sinkhorn_potentials,
)
from resa_jax.methods.resa_loss import resa_loss, sinkhorn_knopp
from resa_jax.methods.similarity import cosine_similarity
from resa_jax.sharding import batch_sharding, create_mesh


M = 24


def arrays(count, width, dtype=float):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(M, width)), dtype) for _ in range(count)]


@pytest.mark.parametrize("block", [1, 8, 24])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_value_and_gradients(block, symmetric, views):
    with jax.enable_x64(True):
        h, h_m, *z = arrays(4 + views, 7)
        z, z_m = z[:views], z[views:]
        plain = sinkhorn_knopp(cosine_similarity(h, h_m), 0.05)
        potentials = sinkhorn_potentials(h, h_m, 0.05, block)
        whole = jax.jit(jax.value_and_grad(lambda z: resa_loss(z, z_m, plain, 0.4, symmetric)))
        parts = jax.jit(
            jax.value_and_grad(
                lambda z: blocked_resa_loss(z, z_m, potentials, block, 0.4, symmetric)
            )
        )
        for one, other in zip(*map(jax.tree.leaves, (whole(z), parts(z))), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-12)
        logs = potentials.log_block(potentials.y, potentials.columns)
        np.testing.assert_allclose(jnp.exp(logs), plain, rtol=1e-10)
        diagonal, entropy = assignment_figures(potentials, block)
        np.testing.assert_allclose(diagonal, np.mean(np.diag(plain)), rtol=1e-10)
        np.testing.assert_allclose(entropy, -np.mean(np.sum(plain * np.log(plain), 1)), rtol=1e-10)


def test_zero_rows_give_finite_gradients():
    h, h_m, a, b, a_m, b_m = arrays(6, 5, np.float32)
    a, h = a.at[3].set(0), h.at[2].set(0)
    potentials = sinkhorn_potentials(h, h_m, 0.05, 8)
    loss = lambda z: blocked_resa_loss(z, [a_m, b_m], potentials, 8)
    for leaf in jax.tree.leaves(jax.value_and_grad(loss)([a, b])):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("assignment", ["encoding", "embedding", "momentum"])
def test_the_method_takes_blocks_where_the_batch_is_large(monkeypatch, assignment):
    """On eight devices: loss, gradients and metrics of the plain form."""
    method = ReSA(assignment=assignment)
    moment = Moment(jnp.zeros((), jnp.int32), jnp.zeros(()), jax.random.key(0))
    mesh = create_mesh()
    results = []
    with jax.enable_x64(True), jax.set_mesh(mesh):
        values = [jax.device_put(x, batch_sharding(mesh)) for x in arrays(8, 6)]

        def loss(predictions, rest):
            online = Outputs(tuple(rest[:2]), tuple(predictions), tuple(predictions), {})
            target = Outputs(tuple(rest[2:4]), tuple(rest[4:]), tuple(rest[4:]), {})
            value, _, metrics = method(online, target, {}, moment)
            return value, metrics

        for block in (None, 6):
            monkeypatch.setattr(resa, "block_size", lambda *_, block=block: block)
            step = jax.jit(lambda p, rest: jax.value_and_grad(loss, has_aux=True)(p, rest))
            results.append(step(values[:2], values[2:]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


def test_block_sizes():
    assert block_size(1024, 1) is None and block_size(8192, 1) is None
    assert block_size(65_536, 256) is None
    for batch, devices in ((16_384, 1), (65_536, 1), (65_536, 8), (3 * 2**14, 2), (40_009, 1)):
        block = block_size(batch, devices)
        assert batch % block == 0 and 8 * block * 4 * batch // devices <= 512 * 2**20


def test_nothing_of_the_batch_by_the_batch_is_kept():
    """Memory of value and gradient at m = 4,096 in blocks of 64, against one m x m array."""
    m, d = 4096, 16
    shape = jax.ShapeDtypeStruct((m, d), jnp.float32)

    def both(h, h_m, a, b, a_m, b_m):
        potentials = sinkhorn_potentials(h, h_m, 0.05, 64)
        loss = lambda z: blocked_resa_loss(z, [a_m, b_m], potentials, 64)
        return jax.value_and_grad(loss)([a, b])

    compiled = jax.jit(both).lower(*[shape] * 6).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * m * m / 4
