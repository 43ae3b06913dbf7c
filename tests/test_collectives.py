"""The collectives of a data-parallel step are those of docs/scaling.md, in number and size."""

import re
from collections import Counter
from math import prod

import jax
import jax.numpy as jnp
import pytest

from benchmarks.scaling_model import collectives, network_shapes
from resa_jax.config import resolve
from resa_jax.recipes import default_config
from resa_jax.sharding import batch_sharding, create_mesh, replicated
from resa_jax.training.programs import create_step


BATCH = 48  # no width of the networks


def recipe(name):
    config = default_config()
    config.batch_size = BATCH
    config.method.update({"predictor": True, "hidden_size": 40, "output_size": 20})
    config.encoder.update({"name": name, "image_size": 8})
    if name.startswith("vit"):
        config.encoder.update({"width": 64, "depth": 1, "patch_size": 4})
    else:
        config.encoder.width = 4
    resolve(config)
    return config


def lowered_step(config, num_devices):
    """The train step's program before the compiler's passes."""
    mesh = create_mesh(jax.devices()[:num_devices])
    _, init, step = create_step(config, 1, 10)

    def struct(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(init)
        state = jax.tree.map(lambda leaf: struct(leaf, replicated(mesh)), shapes)
        view = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.float32, sharding=batch_sharding(mesh))
        whole = replicated(mesh)
        return jax.jit(step, out_shardings=(whole, whole)).lower(state, (view, view))


def found_collectives(hlo):
    """Arrays that each kind of collective gives out, by number of elements."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (\(?[a-z0-9]+\[.*?) ({kinds})(?:-start)?\("
    found = {}
    for shapes, kind in re.findall(pattern, hlo):
        for dims in re.findall(r"[a-z]+[0-9]+\[([\d,]*)\]", shapes):
            size = prod(int(n) for n in dims.split(",") if n)
            found.setdefault(kind, Counter())[size] += 1
    return found


@pytest.mark.parametrize(
    ("name", "num_devices"),
    [
        pytest.param("vit_s16", 4, marks=pytest.mark.slow),
        ("vit_s16", 8),
        pytest.param("resnet18_small", 4, marks=pytest.mark.slow),
        pytest.param("resnet18_small", 8, marks=pytest.mark.slow),
    ],
)
def test_collectives(name, num_devices):
    config = recipe(name)
    found = found_collectives(lowered_step(config, num_devices).compile().as_text())
    assert found == collectives(config, network_shapes(config))


@pytest.mark.parametrize("reduction", ["float32", "bfloat16"])
def test_gradients_of_a_bfloat16_network_are_summed_as_the_recipe_says(reduction):
    config = recipe("vit_s16")
    config.precision = "bfloat16"
    config.gradient_reduction = reduction
    program = lowered_step(config, 4).as_text()  # the CPU's compiler widens every sum
    # Sums of one array; the moments of a BatchNorm travel in pairs.
    kinds = re.findall(r"all_reduce.*?\}\) : \(tensor<(?:[\dx]+x)?(\w+)>\)", program, re.DOTALL)
    shapes = network_shapes(config)
    trained = [path for path in shapes.params if path not in shapes.frozen]
    assert kinds == [{"float32": "f32", "bfloat16": "bf16"}[reduction]] * len(trained)
