"""One device against eight: the same numbers, and collectives of [m] and [m, d] arrays alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from resa_jax.config import resolve
from resa_jax.methods.resa_loss import sinkhorn_knopp
from resa_jax.methods.similarity import cosine_similarity
from resa_jax.recipes import default_config
from resa_jax.sharding import batch_sharding, create_mesh, state_sharding
from resa_jax.training.programs import create_step


BATCH, SIZE = 40, 8


def recipe(name):
    config = default_config()
    config.batch_size = BATCH
    config.ema_momentum, config.weight_decay = 0.9, 1e-3
    config.warmup_epochs = 2  # an epoch is a step here
    config.method.update({"predictor": True, "hidden_size": 64, "output_size": 16})
    config.encoder.update({"name": name, "image_size": SIZE})
    if name.startswith("vit"):
        config.encoder.update({"width": 64, "depth": 1, "patch_size": 4})
        config.optimizer.name, config.base_lr = "adamw", 1e-2
    else:
        config.encoder.width = 4
        config.base_lr = 2.0
    resolve(config)
    return config


def programs(config, steps=5):
    """Initial state (whole, on one device) and the pure train step."""
    _, init, train_step = create_step(config, 1, steps)
    wide = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    state = jax.tree.map(lambda x: x.astype(wide) if x.dtype.kind == "f" else x, jax.jit(init)())
    return state, train_step


def batches(steps):
    """Two views; the rows of each eighth lie elsewhere, so that local statistics would show."""
    for step in range(steps):
        rng = np.random.default_rng(step)
        shift = np.repeat(np.arange(8), BATCH // 8)[:, None, None, None] / 4
        yield [rng.normal(size=(BATCH, SIZE, SIZE, 3)) + shift for _ in range(2)]


def run(config, num_devices, steps, mode="dp"):
    mesh = create_mesh(jax.devices()[:num_devices])
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    with jax.set_mesh(mesh):
        state, train_step = programs(config)
        shardings = state_sharding(mesh, state, mode)
        state = jax.tree.map(jax.device_put, state, shardings)
        train_step = jax.jit(train_step, out_shardings=(shardings, None))
        losses = []
        for views in batches(steps):
            views = [jax.device_put(v.astype(dtype), batch_sharding(mesh)) for v in views]
            state, metrics = train_step(state, views)
            losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def assert_close(a, b, tolerance):
    """Equal to `tolerance`, relative where an array's largest entry is above 1."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        error = np.abs(np.asarray(x) - np.asarray(y)).max() / max(np.abs(y).max(), 1)
        assert error < tolerance, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize(
    "name", [pytest.param("resnet18_small", marks=pytest.mark.slow), "vit_s16"]
)
def test_one_step_on_one_and_eight_devices(name):
    # With SGD's momentum buffer in the state, equal states mean equal gradients.
    one, one_loss = run(recipe(name), 1, steps=1)
    eight, eight_loss = run(recipe(name), 8, steps=1)
    np.testing.assert_allclose(one_loss, eight_loss, rtol=1e-5)
    assert_close(one, eight, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18_small", "vitc_s16"])
def test_five_steps_in_float64(name):
    # Both have BatchNorm.
    with jax.enable_x64(True):
        one, one_loss = run(recipe(name), 1, steps=5)
        eight, eight_loss = run(recipe(name), 8, steps=5)
    np.testing.assert_allclose(one_loss, eight_loss, rtol=1e-9)
    assert_close(one, eight, 1e-9)


@pytest.mark.slow  # one step is in test_distributed.py
def test_fsdp_gives_the_same_numbers(monkeypatch):
    monkeypatch.setattr("resa_jax.sharding._FSDP_MIN_BYTES", 1024)
    config = recipe("vit_s16")
    with jax.enable_x64(True):
        whole, whole_loss = run(config, 8, steps=3)
        split, split_loss = run(config, 8, steps=3, mode="fsdp")
    np.testing.assert_allclose(whole_loss, split_loss, rtol=1e-9)
    assert_close(whole, split, 1e-9)


def test_fsdp_rule():
    mesh = create_mesh()
    leaf = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = {
        "large": leaf((1024, 4096)),
        "first": leaf((4096, 1024)),
        "odd": leaf((1025, 4097)),
        "small": leaf((1024, 8)),
        "number": leaf(()),
    }
    specs = {k: s.spec for k, s in state_sharding(mesh, shapes, "fsdp").items()}
    whole = P()
    assert specs == {
        "large": P(None, "data"),
        "first": P("data"),
        "odd": whole,
        "small": whole,
        "number": whole,
    }
    assert {s.spec for s in state_sharding(mesh, shapes, "dp").values()} == {whole}


def manual_assignment(h, h_m):
    """The assignment with every collective written by hand."""
    normalize = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    h_m = jax.lax.all_gather(normalize(h_m), "data", tiled=True)
    q = jnp.exp(jnp.matmul(normalize(h), h_m.T, precision="highest") / 0.05)
    for _ in range(3):
        q = q / jax.lax.psum(q.sum(0), "data")
        q = q / q.sum(1, keepdims=True)
    return q


def test_assignment_equals_the_one_with_collectives_by_hand():
    mesh = create_mesh()
    h, h_m = np.random.default_rng(0).normal(size=(2, 64, 16)).astype(np.float32) + 1
    with jax.set_mesh(mesh):
        h, h_m = (jax.device_put(x, batch_sharding(mesh)) for x in (h, h_m))
        ours = jax.jit(lambda a, b: sinkhorn_knopp(cosine_similarity(a, b)))(h, h_m)
        manual = jax.jit(
            jax.shard_map(manual_assignment, in_specs=(P("data"), P("data")), out_specs=P("data"))
        )(h, h_m)
    assert ours.sharding.spec[0] == "data"
    np.testing.assert_allclose(ours, manual, rtol=1e-4, atol=1e-7)


def test_no_collective_moves_a_matrix_of_the_batch_by_the_batch():
    # m differs from every width in the networks, so that [m, m] cannot hide.
    mesh = create_mesh()
    config = recipe("vit_s16")
    with jax.set_mesh(mesh):
        state, train_step = programs(config)
        views = [jax.device_put(v, batch_sharding(mesh)) for v in next(iter(batches(1)))]
        shardings = state_sharding(mesh, state, "dp")
        step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = step.lower(state, views).compile()
    pattern = r"= \(?((?:[a-z0-9]+\[[\d,]*\][^ ]* ?)+)\)? (all-\w+|reduce-scatter|collective-\w+)"
    collectives = re.findall(pattern, compiled.as_text())
    assert {kind for _, kind in collectives} >= {"all-gather", "all-reduce"}
    gathered = set()
    for shapes, kind in collectives:
        for dims in re.findall(r"\[([\d,]*)\]", shapes):
            sizes = [int(d) for d in dims.split(",") if d]
            assert np.prod([d for d in sizes if d != 1]) != BATCH * BATCH, (kind, shapes)
            if kind == "all-gather":
                gathered.add(tuple(sizes))
    # The columns: encodings [m, 64] for the assignment, embeddings [m, 16] for the loss.
    assert (BATCH, 64) in gathered
    assert (BATCH, 16) in gathered
    # The state is donated: every one of its buffers is reused.
    assert compiled.as_text().count("may-alias") + compiled.as_text().count("must-alias") >= len(
        jax.tree.leaves(state)
    )
