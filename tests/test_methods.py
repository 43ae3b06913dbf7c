"""The methods in the trainer: three steps of each against NumPy, heads, recipes, runs."""

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import loss_statements as statements
import numpy as np
import pytest
from flax import nnx
from test_simclr import Linear

from resa_jax.baselines import BASELINES, IMAGENET_BASELINES, VIT_BASELINES
from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.methods import cw_rgp, wmse
from resa_jax.methods.interface import Moment, Outputs, create_method
from resa_jax.models.heads import MLP
from resa_jax.models.network import Network, frozen_mask, split
from resa_jax.sharding import batch_sharding, create_mesh, replicated
from resa_jax.training.loop import train
from resa_jax.training.networks import Networks
from resa_jax.training.optimizer import create_optimizer
from resa_jax.training.schedule import warmup_cosine, warmup_drops
from resa_jax.training.step import create_train_state, make_train_step


ROOT = Path(__file__).parents[1]
BATCH, PIXELS, FEATURES, DIMENSIONS, PROTOTYPES, STEPS = 8, 3, 5, 4, 6, 3
PEAK, DECAY, MOMENTUM = 0.05, 0.01, 0.9
# Fields for batches of 8, with everything that begins or ends doing so within three steps.
METHODS = {
    "simclr": {"temperature": 0.3},
    "byol": {},
    "swav": {
        "num_prototypes": PROTOTYPES,
        "freeze_epochs": 1,
        "queue_epoch": 1,
        "queue_size": 12,
        "epsilon": 0.3,
    },
    "simsiam": {},
    "mocov3": {"temperature": 0.4},
    "wmse": {"slice_size": 8, "iterations": 2, "epsilon": 0.1},
    "dino": {
        "num_prototypes": PROTOTYPES,
        "teacher_temperature_epochs": 2,
        "teacher_temperature": 0.5,
        "teacher_temperature_start": 0.3,
    },
    "barlow_twins": {},
    "vicreg": {},
    "cw_rgp": {"slice_size": 2, "groups": 2, "iterations": 2, "epsilon": 0.1},
    "intl": {},
    "mec": {"inverse_lambda_epochs": 2},
}
WITH_PREDICTOR = ("byol", "simsiam", "mocov3", "mec")
WITH_EMA = ("byol", "mocov3", "dino", "mec")
learning_rate = lambda step: PEAK - 0.01 * step
ema_rate = lambda step: 0.2 - 0.03 * step


def matrices(name):
    rng = np.random.default_rng(3)
    w = {
        "encoder": rng.normal(size=(PIXELS, FEATURES)),
        "projector": rng.normal(size=(FEATURES, DIMENSIONS)),
    }
    if name in WITH_PREDICTOR:
        w["predictor"] = rng.normal(size=(DIMENSIONS, DIMENSIONS))
    if name in ("swav", "dino"):
        w["own"] = rng.normal(size=(PROTOTYPES, DIMENSIONS))
    return w


def as_tree(w):
    inner = lambda name: "prototypes" if name == "own" else "kernel"
    return {name: {inner(name): jnp.asarray(matrix)} for name, matrix in w.items()}


def make_step(name):
    method = create_method({"name": name} | METHODS[name])
    network = Network(
        Linear(PIXELS, FEATURES),
        Linear(FEATURES, DIMENSIONS),
        Linear(DIMENSIONS, DIMENSIONS) if name in WITH_PREDICTOR else None,
        joint_projector=method.joint_projector,
    )
    online, frozen = split(network)[0], frozen_mask(network)
    if name in ("swav", "dino"):
        frozen["own"] = {"prototypes": False}
    network.predictor = None
    momentum = split(network)[0] if method.momentum_network else None
    networks = Networks(online, momentum, DIMENSIONS, frozen)
    optimizer = create_optimizer(
        "sgd",
        learning_rate,
        DECAY,
        frozen,
        constant_rate=method.constant_rate,
        peak=PEAK,
        own_start=method.own_start_epoch,
    )
    rates = learning_rate, ema_rate
    step = make_train_step(method, networks, optimizer, *rates, steps_per_epoch=1, seed=0)
    buffers = method.buffers(BATCH, DIMENSIONS)
    state = create_train_state(
        as_tree(matrices(name)), {}, buffers, optimizer, ema=method.momentum_network
    )
    return step, state


class Statement:
    """A method's run with the losses of `loss_statements` and gradients by differences."""

    def __init__(self, name):
        self.name, self.w = name, matrices(name)
        self.ema = {k: v.copy() for k, v in self.w.items() if k != "predictor"}
        self.trace = {k: np.zeros_like(v) for k, v in self.w.items()}
        self.queue, self.center = [np.zeros((0, DIMENSIONS))] * 2, np.zeros(PROTOTYPES)

    def outputs(self, w, views):
        z = [view.mean((1, 2)) @ w["encoder"] @ w["projector"] for view in views]
        return z, [x @ w["predictor"] for x in z] if "predictor" in w else z

    def scores(self, z, prototypes):
        return np.array([[statements.cos(row, c) for c in prototypes] for row in z])

    def loss(self, w, views, step, drawn):
        """w: what the gradient is of; everything else is constant."""
        (z, p), name = self.outputs(w, views), self.name
        constant = self.outputs(self.w, views)[0]
        target = self.outputs(self.ema, views)[0]
        if name == "simclr":
            return statements.simclr(z, 0.3)
        if name == "byol":
            return statements.byol(p, target)
        if name == "simsiam":
            return statements.simsiam(p, constant)
        if name == "mocov3":
            return statements.mocov3(p, target, 0.4)
        if name == "barlow_twins":
            return statements.barlow_twins(z, 0.0051, 0.1)
        if name == "vicreg":
            return statements.vicreg(z, 25, 25, 1)
        if name == "intl":
            return statements.intl(z, None, 4)
        if name == "wmse":
            return statements.wmse(z, *drawn, 8, 0.1)
        if name == "cw_rgp":
            return statements.cw_rgp(z, *drawn, 2, 2, 0.1)
        if name == "mec":
            end = 64 * BATCH / DIMENSIONS
            return statements.mec(p, target, end * (8, 4.5, 1)[step], 4)
        if name == "swav":
            scores = [self.scores(x, w["own"]) for x in z]
            fixed = [self.scores(x, self.w["own"]) for x in constant]
            if step >= 1:
                old = [self.scores(q, self.w["own"]) for q in self.padded()]
                fixed = [np.concatenate(both) for both in zip(fixed, old, strict=True)]
            assignments = [statements.sinkhorn(s, 0.3, 3)[:BATCH] for s in fixed]
            return statements.swav(scores, assignments, 0.1)
        student = [self.scores(x, w["own"]) for x in z]
        teacher = [self.scores(x, self.ema["own"]) for x in target]
        return statements.dino(student, teacher, self.center, (0.3, 0.5, 0.5)[step], 0.1)

    def padded(self):
        return [np.concatenate([q, np.zeros((12, DIMENSIONS))])[:12] for q in self.queue]

    def step(self, views, step, drawn):
        before = self.loss(self.w, views, step, drawn)
        gradients = {k: np.zeros_like(v) for k, v in self.w.items()}
        for k, gradient in gradients.items():
            for place in np.ndindex(*gradient.shape):
                for side, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                    moved = {n: v.copy() for n, v in self.w.items()}
                    moved[k][place] += side * 3e-4
                    gradient[place] += weight * self.loss(moved, views, step, drawn) / 36e-4
        # What the buffers take in comes from before the update.
        z, target = self.outputs(self.w, views)[0], self.outputs(self.ema, views)[0]
        if self.name == "swav":
            unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in z]
            self.queue = [np.concatenate(both) for both in zip(unit, self.queue, strict=True)]
        if self.name == "dino":
            teacher = [self.scores(x, self.ema["own"]) for x in target]
            self.center = 0.9 * self.center + 0.1 * np.concatenate(teacher).mean(0)
        for k, gradient in gradients.items():
            if k == "own" and step < 1:
                continue
            constant = self.name == "simsiam" and k == "predictor"
            self.trace[k] = MOMENTUM * self.trace[k] + gradient + DECAY * self.w[k]
            self.w[k] = self.w[k] - (PEAK if constant else learning_rate(step)) * self.trace[k]
        for k, old in self.ema.items():
            self.ema[k] = old + ema_rate(step) * (self.w[k] - old)
        return before


@pytest.fixture
def drawn(monkeypatch):
    """The permutations that the losses get, as they come."""
    found = []

    def noting(loss):
        def noted(views, *arguments):
            found.append([np.asarray(a) for a in arguments if isinstance(a, jax.Array)])
            return loss(views, *arguments)

        return noted

    monkeypatch.setattr(wmse, "wmse_loss", noting(wmse.wmse_loss))
    monkeypatch.setattr(cw_rgp, "cw_rgp_loss", noting(cw_rgp.cw_rgp_loss))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_three_steps_against_numpy(name, drawn):
    statement = Statement(name)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        step, state = make_step(name)
        for number in range(STEPS):
            views = rng.normal(size=(2, BATCH, 2, 2, PIXELS))
            with jax.disable_jit():
                state, metrics = step(state, tuple(map(jnp.asarray, views)))
            expected = statement.step(views, number, drawn[-1] if drawn else None)
            np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-8, atol=1e-10)
            for k, matrix in statement.w.items():
                (got,) = state.params[k].values()
                np.testing.assert_allclose(got, matrix, rtol=1e-8, atol=1e-8, err_msg=k)
        assert all(np.isfinite(value) for value in metrics.values())
    if name in WITH_EMA:
        for k, matrix in statement.ema.items():
            (got,) = state.ema_params[k].values()
            np.testing.assert_allclose(got, matrix, rtol=1e-8, atol=1e-8, err_msg=k)
    else:
        assert state.ema_params == {}
    if name == "swav":
        np.testing.assert_allclose(state.buffers["queue"], statement.padded(), rtol=1e-7, atol=1e-8)
        assert 0 < metrics["prototypes_used"] <= 1
    if name == "dino":
        np.testing.assert_allclose(state.buffers["center"], statement.center, rtol=1e-7, atol=1e-8)
    if drawn:
        for arrays in drawn:
            for array in arrays:
                last = array.reshape(-1, array.shape[-1])
                np.testing.assert_array_equal(
                    np.sort(last), np.arange(last.shape[1])[None] + 0 * last
                )
                assert len(np.unique(last, axis=0)) > 1
        assert not np.array_equal(drawn[0][0], drawn[1][0])


def steps_views():
    return np.random.default_rng(1).normal(size=(2, STEPS, BATCH, 2, 2, PIXELS))


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """A folder with the end of all methods' steps, taken by two processes of one device each."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    worker = Path(__file__).with_name("methods_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(port), str(number), str(folder)],
            env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(worker.parents[1])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_one_and_eight_devices_and_two_processes(name, of_two_processes):
    views, results = steps_views(), []
    with jax.enable_x64(True):
        for count in (1, 8):
            mesh = create_mesh(jax.devices()[:count])
            with jax.set_mesh(mesh):
                step, state = make_step(name)
                state = jax.device_put(state, replicated(mesh))
                jitted = jax.jit(step, donate_argnums=0)
                for number in range(STEPS):
                    rows = jax.device_put(tuple(views[:, number]), batch_sharding(mesh))
                    state, metrics = jitted(state, rows)
            results.append(jax.tree.map(np.asarray, (state, metrics)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-9, atol=1e-9)
    with np.load(of_two_processes / f"{name}.npz") as two:
        for one, key in zip(jax.tree.leaves(results[0]), two.files, strict=True):
            np.testing.assert_allclose(two[key], one, rtol=1e-9, atol=1e-9)


def test_schedules_against_their_sources():
    peak, total, warmup = 0.4, 50, 10
    with jax.enable_x64(True):
        cosine = warmup_cosine(peak, 0.0, total, warmup, 3e-5)(np.arange(total))
        drops = warmup_drops(peak, (35, 42), warmup, peak / warmup)(np.arange(total))
    for t in range(total):  # solo-learn; W-MSE's and CW-RGP's lr (s + 1) / W, then a fifth, twice
        solo = 3e-5 + t * (peak - 3e-5) / (warmup - 1)
        if t >= warmup:
            solo = peak * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        own = peak * (t + 1) / warmup if t < warmup else peak * 0.2 ** ((t >= 35) + (t >= 42))
        np.testing.assert_allclose([cosine[t], drops[t]], [solo, own], rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_a_late_group_starts_as_if_it_were_new(name):
    """Before its start it does not move; then it moves as a run of its own with later rates."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 4, 3))
    rate = lambda step: 0.1 / (1 + step)
    with jax.enable_x64(True):
        start = jnp.asarray(rng.normal(size=(4, 3)))
        params = {"encoder": start, "own": start}
        frozen = jax.tree.map(lambda _: False, params)
        optimizer = create_optimizer(name, rate, 0.01, frozen, own_start=2)
        alone = create_optimizer(name, lambda step: rate(step + 2), 0.01, {"encoder": False})
        other = {"encoder": start}
        state, other_state = optimizer.init(params), alone.init(other)
        for n, gradient in enumerate(gradients):
            both = {"encoder": gradient, "own": gradient}
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, both), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            if n >= 2:
                one = {"encoder": jnp.asarray(gradient)}
                updates, other_state = alone.update(one, other_state, other)
                other = jax.tree.map(jnp.add, other, updates)
            np.testing.assert_allclose(params["own"], other["encoder"], rtol=1e-12)


def test_adam_decays_in_the_gradient():
    p, m, v = 0.7, 0.0, 0.0
    with jax.enable_x64(True):
        optimizer = create_optimizer("adam", lambda step: 0.1, 0.3, {"encoder": False})
        params = {"encoder": jnp.asarray(p)}
        state = optimizer.init(params)
        for t, gradient in enumerate((0.5, -0.2, 0.1), start=1):
            updates, state = optimizer.update({"encoder": jnp.asarray(gradient)}, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            g = gradient + 0.3 * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            p -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
            np.testing.assert_allclose(params["encoder"], p, rtol=1e-10)


def linear(*sizes, bias=True):
    """Numbers of a chain of linear layers."""
    return sum(a * b + (b if bias else 0) for a, b in itertools.pairwise(sizes))


# Trained parameters of projector and predictor behind 512 features, from the sources' modules.
SIZES = {
    "simclr": (linear(512, 2048, 256), 0),
    "byol": (linear(512, 4096, 256) + 2 * 4096, linear(256, 4096, 256) + 2 * 4096),
    "swav": (linear(512, 2048, 128) + 2 * 2048, 0),
    "simsiam": (
        linear(512, 2048, 2048, 2048, bias=False) + 4 * 2048 + 2048,
        linear(2048, 512, bias=False) + 2 * 512 + linear(512, 2048),
    ),
    "mocov3": (
        linear(512, 4096, 256, bias=False) + 2 * 4096,
        linear(256, 4096, 256, bias=False) + 2 * 4096,
    ),
    "wmse": (linear(512, 1024, 64) + 2 * 1024, 0),
    "dino": (linear(512, 2048, 2048, 256), 0),
    "barlow_twins": (linear(512, 2048, 2048, 2048) + 4 * 2048, 0),
    "vicreg": (linear(512, 2048, 2048, 2048) + 4 * 2048, 0),
    "cw_rgp": (linear(512, 1024, 512) + 2 * 1024, 0),
    "intl": (linear(512, 2048, 2048, bias=False) + 4 * 2048 + linear(2048, 2048), 0),
}
SIZES["mec"] = SIZES["simsiam"]


@pytest.mark.parametrize("name", SIZES)
def test_heads_have_the_sizes_of_their_source(name):
    encoder = SimpleNamespace(num_features=512, family="convnet", dtype=None)
    method = create_method({"name": name})
    heads = nnx.eval_shape(lambda: method.heads(encoder, nnx.Rngs(0)))
    count = lambda head: sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(head, nnx.Param))
    )
    predictor = 0 if heads.predictor is None else count(heads.predictor)
    assert (count(heads.projector), predictor) == SIZES[name]
    frozen = jax.tree.leaves(frozen_mask(heads.projector))
    assert sum(frozen) == (name in ("simsiam", "mec"))  # the bias before the last BatchNorm


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_norm": False}, {"bias": False, "last_batch_norm": True}, {"last_bias": False}],
)
def test_a_head_against_numpy(options):
    sizes, x = (3, 6, 5, 4), np.random.default_rng(0).normal(size=(7, 3))
    with jax.enable_x64(True):
        head = MLP(sizes, rngs=nnx.Rngs(0), **options)
        _, params, _ = split(head)
        layers = head.layers(jnp.asarray(x), train=True)
    standard = lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    for n in range(3):
        x = x @ np.asarray(params["linears"][n]["kernel"], np.float64)
        if options.get("last_bias" if n == 2 else "bias", True):
            x = x + np.asarray(params["linears"][n]["bias"], np.float64)
        if n == 2 and options.get("last_batch_norm"):
            x = standard(x)
        np.testing.assert_allclose(layers[("p0", "p1", "embedding")[n]], x, atol=1e-6)
        x = np.maximum(standard(x) if options.get("batch_norm", True) else x, 0)


RECIPES = ("digits", "cifar100_resnet18", "imagenet100_resnet18")
IMAGENET = [("imagenet_resnet50", name) for name in IMAGENET_BASELINES]
IMAGENET += [("imagenet_vits", name) for name in VIT_BASELINES]


@pytest.mark.parametrize(
    ("recipe", "name"), [*itertools.product(RECIPES, (*BASELINES, "mec")), *IMAGENET]
)
def test_a_recipes_sizes_fit_the_method(recipe, name):
    """Its loss takes a batch of the recipe: slices divide it, groups divide the channels."""
    if name == "mec" and recipe in RECIPES[1:]:
        pytest.skip("Table 1 has no MEC")
    config = load_config(f"{recipe}:{name}")
    method, batch = create_method(config.method), config.batch_size
    width, views = config.method.output_size, range(len(config.views))
    rows = tuple(jnp.zeros((batch, width)) for _ in views)
    moment = Moment(jnp.int32(0), jnp.float32(0), jax.random.key(0))

    def loss(rows):
        outputs = Outputs(rows, rows, rows, method.init(jax.random.key(0), width))
        target = outputs if method.momentum_network else None
        return method(outputs, target, method.buffers(batch, width), moment)[0]

    assert jax.eval_shape(loss, rows).shape == ()


@pytest.mark.parametrize(("recipe", "name"), IMAGENET)
def test_recipes_for_imagenet(recipe, name):
    config = load_config(f"{recipe}:{name}")
    assert config.method.name == name and config.data.source == "tfds:imagenet2012"
    assert [view.size for view in config.views] == [224, 224]
    assert load_config(f"{recipe}:{name},smoke").steps == load_config(f"{recipe}:smoke").steps


TRIO = ("cifar10_resnet18", "imagenet100_resnet18", "imagenet_resnet50")


def test_numbers_of_the_recipes_for_imagenet():
    # baselines.md, by hand: rate at the recipe's batch, and what it ends at.
    rates = {"swav": (4.8, 0.0048), "simsiam": (0.05, 0), "mocov3": (9.6, 0), "mec": (2.0, 0)}
    rates |= {"barlow_twins": (1.6, 0.0016), "intl": (0.3, 3e-4), "byol": (7.2, 0)}
    for name, expected in rates.items():
        config = load_config(f"imagenet_resnet50:{name}")
        found = config.base_lr * config.batch_size / 256, config.final_lr
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # VICReg's authors halve both variances; MoCo v3, SimSiam, MEC and SwAV crop bilinearly.
    weights = {name: load_config(f"{name}:vicreg").method.variance_weight for name in TRIO}
    assert weights == {
        "cifar10_resnet18": 25,
        "imagenet100_resnet18": 25,
        "imagenet_resnet50": 12.5,
    }
    for name in IMAGENET_BASELINES:
        config = load_config(f"imagenet_resnet50:{name}")
        bilinear = name in ("swav", "simsiam", "mocov3", "mec")
        assert {view.interpolation == "bilinear" for view in config.views} == {bilinear}
        assert (config.encoder.zero_init is False) == (name in ("byol", "swav"))
    for name, interpolation in (("mocov3", "bilinear"), ("dino", "bicubic")):
        assert load_config(f"imagenet_vits:{name}").views[1].interpolation == interpolation
    assert load_config("imagenet_resnet50:mocov3,epochs=800").base_lr == 0.3
    small = load_config("imagenet_resnet50:swav,bs1024")
    np.testing.assert_allclose((small.batch_size, small.final_lr), (1024, 0.0012))
    dino = load_config("imagenet_vits:dino")
    assert (dino.base_lr, dino.method.num_prototypes, dino.ema_momentum) == (5e-4, 65_536, 0.996)


def test_recipes():
    for recipe in ("cifar10_resnet18", "cifar100_resnet18", "imagenet100_resnet18"):
        for name in BASELINES:
            config = load_config(f"{ROOT}/configs/{recipe}.py:{name}")
            assert config.method.name == name
            first, second = config.views
            alike = first.to_dict() == second.to_dict()
            unlike = name in ("byol", "mocov3", "dino", "barlow_twins", "intl")
            assert alike != (unlike or (name == "simsiam" and recipe.startswith("imagenet")))
    cifar = lambda name: load_config(f"{ROOT}/configs/cifar10_resnet18.py:{name}")
    # baselines.md's table, by hand.
    assert (cifar("dino").base_lr, cifar("dino").ema_momentum) == (0.3, 0.9995)
    assert (cifar("wmse").batch_size, cifar("wmse").base_lr) == (512, 1.5e-3)
    assert (cifar("intl").final_lr, cifar("intl").encoder.name) == (3e-4, "resnet18_small")
    assert cifar("cw_rgp").encoder.zero_init and cifar("wmse").encoder.zero_init is None
    intl = {name: load_config(f"{name}:intl").optimizer.decay_vectors for name in TRIO}
    assert intl == {
        "cifar10_resnet18": True,
        "imagenet100_resnet18": False,
        "imagenet_resnet50": False,
    }
    with pytest.raises(
        UserError, match=r"no variant 'swaw'; it knows: smoke, resa, simclr, byol, swav"
    ):
        cifar("swaw")
    with pytest.raises(UserError, match=r"no field 'method\.temperature'"):
        load_config(f"{ROOT}/configs/cifar10_resnet18.py:byol", ["method.temperature=0.1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swav", "wmse"])
def test_a_run(tmp_path, name):
    config = load_config(f"{ROOT}/configs/digits.py:{name},smoke")
    final = train(config, tmp_path / "run")
    assert np.isfinite(final["loss"])
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert "alignment" in record
    description = json.loads((tmp_path / "run" / "encoder" / "encoder.json").read_text())
    assert description["network"] == ("ema" if name in WITH_EMA else "online")
