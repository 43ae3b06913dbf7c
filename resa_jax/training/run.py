"""The steps around the train loop: opening a run's data, and leaving its encoder behind."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resa_jax.data.sources import Source, open_source
from resa_jax.encoder import export_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.clustering import compare_features, format_table
from resa_jax.evaluation.online import OnlineEvaluation
from resa_jax.models.spec import EncoderSpec
from resa_jax.sharding import batch_sharding
from resa_jax.training.memory import gibibytes
from resa_jax.training.programs import Programs
from resa_jax.training.step import TrainState
from resa_jax.weights.networks import read_networks


# Images of which data.mean = "auto" takes the statistics.
_STATISTICS_IMAGES = 10_000


def check_batch_size(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses a global batch that the devices do not divide."""
    if config.batch_size % mesh.size:
        below = config.batch_size // mesh.size * mesh.size
        raise UserError(
            f"config.batch_size is {config.batch_size}, which the {mesh.size} devices do not "
            f"divide; {below or mesh.size} or {below + mesh.size} would do."
        )


def open_sources(config: ConfigDict) -> tuple[Source, Source | None]:
    """The source to train on and, where the recipe names one, the source to test on."""
    data = config.data
    options = {"canvas": data.canvas, "classes": data.classes, "on_bad_image": data.on_bad_image}
    source = open_source(data.source, long_tail=data.long_tail, split="train", **options)
    if len(source) < config.batch_size:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but {data.source} holds only "
            f"{len(source)} images; a batch takes each at most once."
        )
    if data.test_source is None:
        return source, None
    return source, open_source(data.test_source, split="test", **options)


def measure_statistics(config: ConfigDict, source: Source) -> ConfigDict:
    """Puts numbers in the place of "auto" in data.mean and data.std, measured on the source."""
    config = config.copy_and_resolve_references()
    if "auto" not in (config.data.mean, config.data.std):
        return config
    rows = np.linspace(0, len(source) - 1, min(len(source), _STATISTICS_IMAGES)).astype(int)
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for row in rows:
        pixels = source[int(row)].reshape(-1, 3) / 255
        sums, squares, count = (
            sums + pixels.sum(0),
            squares + (pixels**2).sum(0),
            count + len(pixels),
        )
    mean = sums / count
    std = np.sqrt(squares / count - mean**2)
    for name, value in (("mean", mean), ("std", np.maximum(std, 1e-3))):
        if config.data[name] == "auto":
            config.data[name] = tuple(round(float(x), 4) for x in value)
    return config


def describe(config: ConfigDict, mesh: Mesh, source: Source, total_steps: int, memory: int) -> str:
    """A line that says what is about to run, and where; `memory` in bytes a device."""
    kinds = sorted({device.device_kind for device in mesh.devices.flat})
    return (
        f"{config.encoder.name} on {len(source)} images of {config.data.source}: {total_steps} "
        f"steps of {config.batch_size} images on {mesh.size} x {' and '.join(kinds)}, "
        f"{jax.process_count()} process(es), {gibibytes(memory)} a device; the loss of chance is "
        f"ln {config.batch_size} = {math.log(config.batch_size):.3f}."
    )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """This process's part of a batch as global arrays: images and their sizes."""
    return tuple(
        jax.make_array_from_process_local_data(batch_sharding(mesh), batch[name])
        for name in ("images", "sizes")
    )


def is_due(every_epochs: int, step: int, steps_per_epoch: int) -> bool:
    """Whether something that happens every so many epochs (0: never) happens after this step."""
    return every_epochs > 0 and step % (every_epochs * steps_per_epoch) == 0


def initialize_from(config: ConfigDict, state: TrainState) -> TrainState:
    """Puts the weights of `config.init_from`, where given, into a new state.

    A full checkpoint of the authors' code fills all networks; an encoder goes into both.
    """
    if config.init_from is None:
        return state
    spec, networks = read_networks(Path(config.init_from), arch=config.encoder.name)
    if spec.name != config.encoder.name:
        raise UserError(
            f"config.init_from={config.init_from} holds a {spec.name}, but config.encoder.name is "
            f"{config.encoder.name}."
        )
    if "predictor" in networks["params"] and not config.predictor:
        raise UserError(
            f"config.init_from={config.init_from} holds a predictor; set config.predictor=true, or "
            "convert its encoder alone."
        )
    fields = vars(state)
    changed = {
        part: fields[part]
        | {
            child: _like(fields[part][child], weights, config.init_from)
            for child, weights in children.items()
        }
        for part, children in networks.items()
        if fields[part]  # a recipe without a momentum network has empty EMA trees
    }
    return TrainState(**(fields | changed))


def _like(old, new, path):
    def place(keys, old, new):
        if old.shape != np.shape(new):
            raise UserError(
                f"config.init_from={path}: {jax.tree_util.keystr(keys)} has the shape "
                f"{np.shape(new)}, but the recipe needs {old.shape}; set encoder.image_size, "
                "patch_size, width and depth, and projector.hidden_size and output_size, as the "
                "weights have them."
            )
        return jax.device_put(jnp.array(new, old.dtype, copy=True), old.sharding)

    if jax.tree.structure(old) != jax.tree.structure(new):
        raise UserError(f"config.init_from={path} holds other layers than the recipe's encoder.")
    return jax.tree_util.tree_map_with_path(place, old, new)


def is_finished(workdir: Path, total_steps: int) -> bool:
    """Whether the run in `workdir` has left its encoder."""
    path = workdir / "encoder" / "encoder.json"
    return path.is_file() and json.loads(path.read_text())["step"] == total_steps


def last_metrics(workdir: Path) -> dict[str, int | float]:
    """The last value of every metric that the run has recorded."""
    multihost_utils.sync_global_devices("metrics.jsonl")  # process 0 may be writing still
    metrics = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        metrics |= json.loads(line)
    return metrics


def finish(
    config: ConfigDict,
    workdir: Path,
    programs: Programs,
    evaluation: OnlineEvaluation,
    state: TrainState,
) -> None:
    """Exports the encoder and says where it is and how to use it."""
    spec = EncoderSpec.from_config(config)
    network = "ema" if state.ema_params else "online"
    params, batch_stats = state.ema_params, state.ema_batch_stats
    if network == "online":
        params, batch_stats = state.params, state.batch_stats
    export_encoder(
        workdir / "encoder",
        spec,
        params["encoder"],
        batch_stats.get("encoder", {}),
        network=network,
        step=int(state.step),
    )
    baselines = config.eval.baselines and evaluation.labelled
    table = _compare(programs, evaluation, state) if baselines else None
    if jax.process_index() > 0:
        return
    if table is not None:
        (workdir / "evaluation").mkdir(exist_ok=True)
        path = workdir / "evaluation" / "baselines.json"
        path.write_text(json.dumps(table, indent=2) + "\n")
        print(f"\n{format_table(table)}")
    print(f"\n{_usage(config, workdir)}")


def _compare(programs, evaluation, state):
    initial, _ = evaluation.features(programs.init())
    trained, labels = evaluation.features(state)
    rows = {
        "pixels": evaluation.pixels(),
        "random encoder": initial["encoding"],
        "trained encoder": trained["encoding"],
    }
    return compare_features(rows, labels)


def _usage(config, workdir):
    encoder, source, size = workdir / "encoder", config.data.source, config.encoder.image_size
    return f"""The encoder is in {encoder}.
Use it from the command line:
  python -m resa_jax.evaluate --encoder={encoder} --protocol=knn-weighted --source={source}
  python -m resa_jax.embed --encoder={encoder} --source={source} --output={workdir}/encodings.npz
or from Python:
  import numpy as np, resa_jax
  encoder = resa_jax.load_encoder("{encoder}")
  images = np.zeros((1, {size}, {size}, 3), np.uint8)  # yours, [n, height, width, 3]
  encodings = encoder(images)  # [n, features]
"""
