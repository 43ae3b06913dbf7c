"""A run's folder with two checkpoints of an untrained network, for the tests of its evaluation."""

import json
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from resa_jax.checkpoint import Checkpoints
from resa_jax.config import load_config, to_json
from resa_jax.methods.interface import create_method
from resa_jax.models.spec import EncoderSpec
from resa_jax.training.networks import Networks, create_networks, init_networks
from resa_jax.training.step import TrainState, create_train_state
from resa_jax.weights.export import export_encoder


ROOT = Path(__file__).resolve().parent.parent


def initial_state(config: ConfigDict, seed: int) -> tuple[Networks, TrainState]:
    """The structures of a recipe's networks, and an untrained state."""
    method = create_method(config.method)
    networks = create_networks(config, method)
    trees = init_networks(config, method, jax.random.key(seed), networks.width)
    buffers = method.buffers(config.batch_size, networks.width)
    return networks, create_train_state(*trees, buffers, optax.sgd(0.1), ema=True)


def make_run(workdir: Path, *overrides: str, steps: tuple[int, ...] = (2, 4)) -> Path:
    """Writes what a run of `configs/digits.py:smoke` leaves behind, without training."""
    config = load_config(
        str(ROOT / "configs/digits.py:smoke"),
        ["data.mean=(0.3,0.3,0.3)", "data.std=(0.4,0.4,0.4)", *overrides],
    )
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    with Checkpoints(workdir / "checkpoints", 9, to_json(config)) as checkpoints:
        for step in steps:
            _, state = initial_state(config, step)
            checkpoints.save(state, step)
    export_encoder(
        workdir / "encoder",
        EncoderSpec.from_config(config),
        state.ema_params["encoder"],
        state.ema_batch_stats.get("encoder", {}),
        network="ema",
        step=step,
    )
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(1, max(steps) + 1):
            record = {"step": step, "epoch": step / 2, "loss": 2.0 / step, "images_per_second": 9.0}
            file.write(json.dumps(record) + "\n")
            if step in steps:
                scores = {"knn_top1": 50.0, "encoding_ari": 0.3, "embedding_ari": 0.2}
                record = {f"eval/{name}": value for name, value in scores.items()}
                file.write(json.dumps({"step": step, "epoch": step / 2} | record) + "\n")
    return workdir
