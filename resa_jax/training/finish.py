"""What a run leaves behind: its encoder, a table of baselines, and how to use it."""

import json
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError
from resa_jax.evaluation.clustering import compare_features, format_table
from resa_jax.evaluation.online import OnlineEvaluation
from resa_jax.image_size import height_width
from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, write_whole
from resa_jax.training.programs import Programs
from resa_jax.training.step import TrainState
from resa_jax.weights.export import export_encoder, is_export, read_description, read_export
from resa_jax.workdir import checkpoint_paths


_LOG = logging.getLogger("resa_jax")


def is_finished(workdir: AnyPath, total_steps: int) -> bool:
    """Whether the run in `workdir` has left its encoder, whole.

    Raises:
      UserError: it has, damaged, and there is no checkpoint to export it from again.
    """
    path = workdir / "encoder"
    if not is_export(path):
        return False
    try:
        description = read_description(path)
        if description.get("step") != total_steps:
            return False
        read_export(path, str(description.get("network")))
    except UserError as error:
        if not checkpoint_paths(workdir):
            raise UserError(
                f"{error} There is no checkpoint to export it from again; give another --workdir."
            ) from error
        _LOG.warning("Warning: %s It is exported again.", error)
        return False
    return True


def finish(
    config: ConfigDict,
    workdir: AnyPath,
    programs: Programs,
    evaluation: OnlineEvaluation,
    state: TrainState,
) -> None:
    """Exports the encoder and says where it is and how to use it."""
    params, batch_stats = state.evaluated
    export_encoder(
        workdir / "encoder",
        EncoderSpec.from_config(config),
        params["encoder"],
        batch_stats.get("encoder", {}),
        network="ema" if state.ema_params else "online",
        step=int(state.step),
    )
    baselines = config.eval.baselines and evaluation.labelled
    table = _compare(programs, evaluation, state) if baselines else None
    if jax.process_index() > 0:
        return
    if table is not None:
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        path = workdir / "evaluation" / "baselines.json"
        write_whole(path, json.dumps(table, indent=2) + "\n")
        print(f"\n{format_table(table)}")
    how = Decoding.of(config.data)
    print(f"\n{_usage(workdir, config.data.source, config.encoder.image_size, how)}")


def _compare(programs, evaluation, state):
    initial, _ = evaluation.features(*programs.init().evaluated)
    trained, labels = evaluation.features(*state.evaluated)
    if len(np.unique(labels)) < 2:
        return None  # nothing to separate
    rows = {
        "pixels": evaluation.pixels(),
        "random encoder": initial["encoding"],
        "trained encoder": trained["encoding"],
    }
    return compare_features(rows, labels)


def _usage(workdir, source, size, how):
    encoder, shape = workdir / "encoder", (1, *height_width(size), how.channels)
    return f"""The encoder is in {encoder}.
Use it from the command line:
  python -m resa_jax.evaluate --encoder={encoder} --protocol=knn-weighted --source={source}
  python -m resa_jax.embed --encoder={encoder} --source={source} --output={workdir}/encodings.npz
or from Python:
  import numpy as np, resa_jax
  encoder = resa_jax.load_encoder("{encoder}")
  images = np.zeros({shape}, np.{how.dtype})  # yours, [n, height, width, {how.channels}]
  encodings = encoder(images)  # [n, features]
"""
