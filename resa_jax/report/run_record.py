"""What a run's folder says about the run. Imports nothing heavy."""

import logging
from dataclasses import dataclass

from ml_collections import ConfigDict

from resa_jax.config import read_config_file
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, read_json
from resa_jax.workdir import METRICS, checkpoint_paths, read_records


_LOG = logging.getLogger("resa_jax")


# The layers of a network in the order of the data flow, as records and protocols name them.
LAYERS = {
    "encoding": "H (encoding)",
    "p0": "P0 (hidden layer)",
    "p1": "P1 (hidden layer)",
    "embedding": "Z (embedding)",
}
_OLD_LAYERS = {"h": "encoding", "z": "embedding"}  # in results of versions before 0.2

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it.

    Attributes:
      workdir: the folder.
      config: the resolved recipe, of older versions too.
      records: the lines of metrics.jsonl.
      evaluations: the results of the protocols, by file name without its ending.
      has_checkpoint: whether there is a network to draw pictures of.
    """

    workdir: AnyPath
    config: ConfigDict
    records: list[dict]
    evaluations: dict[str, dict]
    has_checkpoint: bool

    def curve(self, name: str) -> Curve:
        """A metric over the epochs."""
        there = [record for record in self.records if name in record]
        return [record["epoch"] for record in there], [record[name] for record in there]

    def last(self, name: str) -> float | None:
        """The last value of a metric, None where it was never recorded."""
        values = self.curve(name)[1]
        return values[-1] if values else None

    def last_at(self, name: str) -> tuple[int, float] | None:
        """Step and value of a metric's last record, None where it was never recorded."""
        there = [record for record in self.records if name in record]
        return (there[-1]["step"], there[-1][name]) if there else None

    def wall_time(self) -> dict[str, float]:
        """Seconds by part of the run, the latest on record; empty where there are none."""
        for record in reversed(self.records):
            parts = {k.split("/")[1]: v for k, v in record.items() if k.startswith("seconds/")}
            if parts:
                return parts
        return {}

    def layer_curves(self, score: str) -> dict[str, Curve]:
        """A clustering score of each layer over the epochs, by the layers' titles.

        Points come from the evaluations during training and from `clustering` results of single
        checkpoints; of both at one epoch the former count.
        """
        curves = {}
        for layer, title in LAYERS.items():
            points = dict(self._checkpoint_points(layer, score))
            points |= dict(zip(*self.curve(f"eval/{layer}_{score}"), strict=True))
            if points:
                curves[title] = sorted(points), [points[epoch] for epoch in sorted(points)]
        return curves

    def _checkpoint_points(self, layer, score):
        epochs = {record["step"]: record["epoch"] for record in self.records}
        for result in self.evaluations.values():
            scores = result.get("results", {}).get(layer, {})
            own_source = result.get("source") == self.config.data.source
            is_clustering = result.get("protocol") == "clustering" and own_source
            if is_clustering and score in scores and result["step"] in epochs:
                yield epochs[result["step"]], scores[score]


def read_run(workdir: AnyPath) -> RunRecord:
    """Reads a run's folder.

    Raises:
      UserError: the folder holds no run.
    """
    for name in ("config.json", "metrics.jsonl"):
        if not (workdir / name).is_file():
            raise UserError(
                f"--workdir={workdir} holds no run: it has no {name}. Give the folder that "
                "`resa_jax.main` was given."
            )
    records, faults = read_records(workdir / METRICS)
    if faults:
        _LOG.warning(
            "Warning: %s, lines %s are no records and are left out.",
            workdir / METRICS,
            ", ".join(map(str, faults)),
        )
    if not records:
        raise UserError(f"{workdir / 'metrics.jsonl'} is still empty; report the run later.")
    evaluations = {}
    for path in sorted((workdir / "evaluation").glob("*.json")):
        try:
            evaluations[path.stem] = _read_result(path)
        except UserError as error:
            _LOG.warning("Warning: %s It is left out.", error)
    return RunRecord(
        workdir=workdir,
        config=read_config_file(workdir / "config.json"),
        records=list(records.values()),
        evaluations=evaluations,
        has_checkpoint=bool(checkpoint_paths(workdir)),
    )


def _are_scores(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_are_scores, value.values()))
    return value is None or isinstance(value, int | float)


def _read_result(path):
    result = read_json(path)
    rows = result if path.stem == "baselines" else result.get("results", {})
    step, seed = result.get("step"), result.get("seed")
    if (
        not isinstance(rows, dict)
        or not all(isinstance(scores, dict) and _are_scores(scores) for scores in rows.values())
        or not isinstance(result.get("hyperparameters", {}), dict)
        or not isinstance(step, int | None)
        or not isinstance(seed, int | None)
        or not isinstance(result.get("protocol", ""), str)
        or ("protocol" in result and not {"results", "hyperparameters", "seed"} <= result.keys())
    ):
        raise UserError(f"{path} is not what an evaluation writes.")
    if result.get("protocol") == "clustering":
        rows = result["results"].items()
        result["results"] = {_OLD_LAYERS.get(name, name): scores for name, scores in rows}
    return result
