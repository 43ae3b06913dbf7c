"""SimCLR: one train step against NumPy, its recipes, and a run of its own."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.methods.simclr import SimCLR
from resa_jax.models.network import Network, frozen_mask, split
from resa_jax.training.loop import train
from resa_jax.training.networks import Networks
from resa_jax.training.optimizer import create_optimizer
from resa_jax.training.step import create_train_state, make_train_step


ROOT = Path(__file__).parents[1]
BATCH, FEATURES, DIMENSIONS, TEMPERATURE = 5, 4, 3, 0.3


class Linear(nnx.Module):
    """One matrix on the mean of an image's pixels, or on an encoding."""

    def __init__(self, rows, columns):
        self.kernel = nnx.Param(jnp.zeros((rows, columns)))

    def __call__(self, x, *, train):
        return (x.mean((1, 2)) if x.ndim == 4 else x) @ self.kernel[...]


def nt_xent(first, second):
    """The mean over 2N rows, one row at a time, as equation 1 has it."""
    rows = np.concatenate([first, second])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    total = 0.0
    for i in range(2 * BATCH):
        partner = (i + BATCH) % (2 * BATCH)
        others = [np.exp(rows[i] @ rows[j] / TEMPERATURE) for j in range(2 * BATCH) if j != i]
        total -= np.log(np.exp(rows[i] @ rows[partner] / TEMPERATURE) / sum(others))
    return total / (2 * BATCH)


def test_a_step_against_numpy():
    rng = np.random.default_rng(0)
    w = {"encoder": rng.normal(size=(3, FEATURES)), "projector": rng.normal(size=(FEATURES, 3))}
    views = rng.normal(size=(2, BATCH, 2, 2, 3))

    def loss_of(w):
        return nt_xent(*(view.mean((1, 2)) @ w["encoder"] @ w["projector"] for view in views))

    with jax.enable_x64(True):
        network = Network(Linear(3, FEATURES), Linear(FEATURES, DIMENSIONS))
        networks = Networks(split(network)[0], None, DIMENSIONS, frozen_mask(network))
        rate = lambda step: 0.5
        optimizer = create_optimizer("sgd", rate, 0.0, networks.frozen)
        tree = {name: {"kernel": jnp.asarray(matrix)} for name, matrix in w.items()}
        method = SimCLR(temperature=TEMPERATURE)
        step = make_train_step(method, networks, optimizer, rate, rate, steps_per_epoch=1, seed=0)
        state = create_train_state(tree, {}, {}, optimizer, ema=method.momentum_network)
        after, metrics = jax.jit(step)(state, tuple(map(jnp.asarray, views)))
    np.testing.assert_allclose(metrics["loss"], loss_of(w), rtol=1e-10)
    assert after.ema_params == {} and after.buffers == {}
    for name, matrix in w.items():
        gradient = np.zeros_like(matrix)
        for place in np.ndindex(*matrix.shape):
            moved = {side: {k: v.copy() for k, v in w.items()} for side in (-1, 1)}
            for side in moved:
                moved[side][name][place] += side * 1e-5
            gradient[place] = (loss_of(moved[1]) - loss_of(moved[-1])) / 2e-5
        expected = matrix - 0.5 * gradient
        np.testing.assert_allclose(after.params[name]["kernel"], expected, rtol=1e-7, atol=1e-9)


def test_recipes():
    config = load_config(str(ROOT / "configs" / "cifar10_resnet18.py:simclr"))
    assert config.method.to_dict() == {
        "name": "simclr",
        "temperature": 0.2,
        "hidden_size": 2048,
        "output_size": 256,
        "three_layers": False,
    }
    assert (config.optimizer.name, config.base_lr, config.final_lr) == ("lars", 0.4, 0.0)
    first, second = config.views
    assert first.to_dict() == second.to_dict()
    assert (first.crop_scale, first.saturation, first.blur_probability) == ((0.08, 1.0), 0.8, 0.5)
    with pytest.raises(UserError, match=r"no field 'method\.epsilon'"):
        load_config(str(ROOT / "configs" / "digits.py:simclr"), ["method.epsilon=0.1"])
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), ["method.name=simclr"])
    assert config.method.to_dict() == {
        "name": "simclr",
        "temperature": 0.2,
        "hidden_size": 32,
        "output_size": 16,
        "three_layers": False,
    }


@pytest.mark.slow
def test_a_run_leaves_its_only_encoder(tmp_path):
    config = load_config(str(ROOT / "configs" / "digits.py:simclr,smoke"))
    whole = train(config, tmp_path / "whole")
    records = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert "alignment" in json.loads(records[1]) and np.isfinite(whole["loss"])
    description = json.loads((tmp_path / "whole" / "encoder" / "encoder.json").read_text())
    assert description["network"] == "online"
