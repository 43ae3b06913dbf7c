"""Five train steps against an independent PyTorch statement of ReSA, in float64.

Flax's and PyTorch's BatchNorm differ in one number: PyTorch moves the running variance by the
unbiased variance of the batch, Flax by the biased one. The project's own BatchNorm follows PyTorch
(fidelity to the published models), so the buffers are compared without any correction.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layouts

from resa_jax.config import resolve
from resa_jax.models.spec import EncoderSpec
from resa_jax.recipes import default_config
from resa_jax.training.programs import create_step
from resa_jax.weights.names import encoder_slots, predictor_slots, projector_slots


pytestmark = pytest.mark.torch

STEPS, WARMUP, BATCH, SIZE = 5, 2, 8, 8
HIDDEN, OUTPUT = 16, 8


def recipe(name):
    config = default_config()
    config.encoder.update({"name": name, "image_size": SIZE})
    if name.startswith("vit"):
        config.encoder.update({"width": 64, "depth": 2, "patch_size": 4})
        config.optimizer.name, config.base_lr, config.weight_decay = "adamw", 0.1, 0.1
    else:
        config.encoder.width = 4
        config.base_lr, config.weight_decay = 3.0, 1e-2
    config.method.update({"predictor": True, "hidden_size": HIDDEN, "output_size": OUTPUT})
    config.warmup_epochs = WARMUP  # an epoch is a step here
    config.batch_size = BATCH
    config.ema_momentum = 0.7
    resolve(config)
    return config


def torch_networks(name, seed):
    """PyTorch's online and momentum networks; the momentum one starts elsewhere."""
    import torch_models
    import torch_resa

    vit = name.startswith("vit")
    if vit:
        layout = torch_layouts.vit(64, 2, 4, 2)
        create = lambda: torch_models.ViT(64, 2, 1, 4, 2)
        features = 64
    else:
        layout = torch_layouts.resnet(False, (2, 2, 2, 2), 3, width=4)
        create = lambda: torch_models.ResNet(False, (2, 2, 2, 2), "small", width=4)
        features = 32

    def network(seed, predictor):
        encoder = torch_models.load(create(), torch_layouts.formula(layout, seed))
        if vit:
            encoder.patch_embed.requires_grad_(False)
        shapes = torch_layouts.projector(vit, features, HIDDEN, OUTPUT)
        projector = torch_models.load(
            torch_models.projector(vit, features, HIDDEN, OUTPUT),
            torch_layouts.formula(shapes, seed + 1),
        )
        if not predictor:
            return torch_resa.Network(encoder, projector)
        shapes = torch_layouts.predictor(vit, OUTPUT, HIDDEN)
        predictor = torch_models.load(
            torch_models.predictor(vit, OUTPUT, HIDDEN), torch_layouts.formula(shapes, seed + 2)
        )
        return torch_resa.Network(encoder, projector, predictor)

    return network(seed, predictor=True), network(seed + 10, predictor=False)


def to_ours(network, config):
    """A PyTorch network's tensors as our `params` and `batch_stats`."""
    spec = EncoderSpec.from_config(config)
    features = network.projector[0].in_features
    slots = {
        "encoder": encoder_slots(spec),
        "projector": projector_slots(spec.family, features, HIDDEN, OUTPUT),
        "predictor": predictor_slots(spec.family, OUTPUT, HIDDEN),
    }
    trees = {"params": {}, "batch_stats": {}}
    for child, module in network.named_children():
        state = module.state_dict()
        for key, slot in slots[child].items():
            node = trees[slot.collection].setdefault(child, {})
            for part in slot.path[:-1]:
                node = node.setdefault(part, {})
            node[slot.path[-1]] = jnp.asarray(slot.from_torch(state[key].numpy().copy()))
    return trees["params"], trees["batch_stats"]


def assert_trees_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18_small", (SIZE, SIZE)),
        ("resnet18_small", (SIZE, SIZE, 4, 4)),
        ("vit_s16", (SIZE, SIZE, 4)),
    ],
)
def test_five_steps(name, sizes):
    torch = pytest.importorskip("torch")
    import torch_resa

    batches = [
        [torch_layouts.noise((BATCH, size, size, 3), 10 * step + v) for v, size in enumerate(sizes)]
        for step in range(STEPS)
    ]
    online, momentum = torch_networks(name, seed=1)
    config = recipe(name)
    with jax.enable_x64(True):
        networks, init, train_step = create_step(config, 1, STEPS)
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype.kind == "f" else x, jax.jit(init)()
        )
        names = ("params", "batch_stats"), ("ema_params", "ema_batch_stats")
        for pair, network in zip(names, (online, momentum), strict=True):
            for name, tree in zip(pair, to_ours(network, config), strict=True):
                assert jax.tree.structure(getattr(state, name)) == jax.tree.structure(tree)
                state = dataclasses.replace(state, **{name: tree})
        start = state
        step = jax.jit(train_step)
        losses = []
        for views in batches:
            state, metrics = step(state, [jnp.asarray(view) for view in views])
            losses.append(float(metrics["loss"]))

        expected = torch_resa.train(
            online,
            momentum,
            [[torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in b] for b in batches],
            lr=config.base_lr * BATCH / 256,
            warmup=WARMUP,
            weight_decay=config.weight_decay,
            ema=config.ema_momentum,
            optimizer=config.optimizer.name,
        )
        np.testing.assert_allclose(losses, expected, rtol=1e-8)
        params, batch_stats = to_ours(online, config)
        ema_params, ema_batch_stats = to_ours(momentum, config)
        assert_trees_close(state.params, params)
        assert_trees_close(state.batch_stats, batch_stats)
        assert_trees_close(state.ema_params, ema_params)
        assert_trees_close(state.ema_batch_stats, ema_batch_stats)

        # The steps did something, and left alone what is frozen.
        for keep, old, new in zip(
            jax.tree.leaves(networks.frozen),
            jax.tree.leaves(start.params),
            jax.tree.leaves(state.params),
            strict=True,
        ):
            assert (np.asarray(old) == np.asarray(new)).all() == keep
