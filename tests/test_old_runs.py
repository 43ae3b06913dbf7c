"""A run that version 0.1 began: read, gone on with, and what a later version's run is told."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import resa_jax
from resa_jax.checkpoint import FORMAT, read_config
from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.training.loop import train


ROOT = Path(__file__).parents[1]
# The last loss when version 0.1 itself goes on with the run, its blur replaced by Pillow's, which
# this version has; its own blur gave 2.51228.
LAST_LOSS = 2.62328


@pytest.fixture
def run(tmp_path):
    """Stopped after step 3 of 6."""
    with tarfile.open(ROOT / "tests" / "data" / "run_of_version_0_1.tgz") as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        archive.extractall(tmp_path, **safely)
    return tmp_path / "run"


def recipe(*overrides):
    sizes = ["encoder.width=1", "method.hidden_size=4", "method.output_size=4", "steps=6"]
    path = str(ROOT / "configs" / "digits.py:smoke")
    return load_config(path, [*sizes, "eval.baselines=false", *overrides])


@pytest.mark.slow
def test_it_goes_on(run):
    metrics = train(recipe(), run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(metrics["loss"], LAST_LOSS, rtol=1e-3)


def test_another_recipe_is_refused_by_name(run):
    with pytest.raises(UserError, match=r"holds a run with method\.temperature = 0\.4, not 0\.3"):
        train(recipe("method.temperature=0.3"), run)


def test_its_encoder_is_read(run):
    encoder = resa_jax.load_encoder(run, projector=True)
    assert encoder.step == 3
    assert encoder.layer_names == ("encoding", "p0", "p1", "embedding")
    assert encoder(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 8)


def test_a_run_of_a_later_version_is_refused(run):
    path = run / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"] |= {"format": FORMAT + 1}
    metadata["custom_metadata"]["versions"]["resa_jax"] = "9.0"
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"checkpoints/3 was saved by resa_jax 9\.0, in format 3"):
        resa_jax.load_encoder(run)
    with pytest.raises(UserError, match=r"this version \(.*\) reads up to format 2"):
        read_config(run / "checkpoints" / "3")
