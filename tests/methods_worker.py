"""One of two processes that take the same steps of every method as `test_methods` does alone.

python tests/methods_worker.py PORT PROCESS FOLDER
"""

import sys

import jax


port, process, folder = sys.argv[1:]
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))

import numpy as np  # noqa: E402
from test_methods import METHODS, STEPS, make_step, steps_views  # noqa: E402

from resa_jax.sharding import batch_sharding, create_mesh, replicated  # noqa: E402


mesh = create_mesh()
whole = replicated(mesh)
for name in METHODS:
    views = steps_views()
    with jax.set_mesh(mesh):
        step, state = make_step(name)
        state = jax.tree.map(
            lambda leaf: jax.make_array_from_callback(
                leaf.shape, whole, np.asarray(leaf).__getitem__
            ),
            state,
        )
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))
        for number in range(STEPS):
            rows = tuple(
                jax.make_array_from_callback(
                    view.shape, batch_sharding(mesh), np.ascontiguousarray(view).__getitem__
                )
                for view in views[:, number]
            )
            state, metrics = jitted(state, rows)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state, metrics))]
    if process == "0":
        np.savez(f"{folder}/{name}.npz", *leaves)
