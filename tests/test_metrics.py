"""What a run writes to TensorBoard."""

import io
import json
import logging
import math
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from resa_jax import UserError
from resa_jax.config import load_config
from resa_jax.sharding import batch_sharding, create_mesh
from resa_jax.training.metrics import MetricsWriter
from resa_jax.training.wall_time import WallTime


ROOT = Path(__file__).parents[1]


def read_events(folder):
    """The events of a folder: records of a length, its checksum, the event, its checksum."""
    (path,) = folder.glob("events.*")
    data, position = path.read_bytes(), 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        yield Event.FromString(data[position + 12 : position + 12 + length])
        position += length + 16


def test_views_and_scalars_in_tensorboard(tmp_path):
    statistics = ["data.mean=(0.2,0.3,0.4)", "data.std=(0.5,0.6,0.7)"]
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), statistics)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 8, 8, 3), np.uint8)
    views = ((pixels / 255 - [0.2, 0.3, 0.4]) / [0.5, 0.6, 0.7]).astype(np.float32)
    mesh = create_mesh()
    views = tuple(jax.device_put(view, batch_sharding(mesh)) for view in views)
    writer = MetricsWriter(tmp_path, config, WallTime(), 0, 10, 5, flops=1e6)
    with jax.set_mesh(mesh), writer:
        writer.show(1, views)
        writer.write(2, {"eval/knn_top1": 75.0})
    values = {
        v.tag: v for event in read_events(tmp_path / "tensorboard") for v in event.summary.value
    }
    for number in (0, 1):
        picture = Image.open(io.BytesIO(values[f"views/{number}"].image.encoded_image_string))
        # Eight of 64 images on the first of eight devices.
        np.testing.assert_array_equal(picture, np.concatenate(pixels[number, :8], axis=1))
    assert values["eval/knn_top1"].simple_value == 75


@pytest.mark.parametrize(("first_step", "kept"), [(0, []), (5, [0, 5]), (9, [0, 5, 9])])
def test_a_step_stands_once(tmp_path, first_step, kept):
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), [])
    lines = [json.dumps({"step": step, "epoch": step / 5}) + "\n" for step in (0, 5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 1')
    with MetricsWriter(tmp_path, config, WallTime(), first_step, 10, 5, flops=1e6):
        pass
    left = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in left] == kept


@pytest.mark.parametrize(
    ("std", "rank", "epoch", "said"),
    [
        (0.12, 9, 1, 0),
        (1e-4, 1.2, 1, 1),
        (0.1, 1.1, 1, 1),
        (1e-4, 1.2, 0.2, 0),
        (math.nan, 9, 1, 0),
    ],
)
def test_collapse_is_said_once(tmp_path, caplog, std, rank, epoch, said):
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), [])
    logging.getLogger("resa_jax").propagate = True
    record = {"loss": 1.0, "images_per_second": 1.0, "embedding_std": std, "effective_rank": rank}
    with (
        caplog.at_level(logging.INFO, "resa_jax"),
        MetricsWriter(tmp_path, config, WallTime(), 0, 100, 10, flops=1e6) as writer,
    ):
        writer.write(round(10 * epoch), record)
        writer.write(round(10 * epoch) + 1, record)
    assert caplog.text.count("the embeddings have collapsed") == said


def test_a_run_on_mostly_bad_images_stops(tmp_path):
    """Once there are 32 of them, so that a first batch of bad luck does not count."""
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), ["data.on_bad_image=skip"])
    with MetricsWriter(tmp_path, config, WallTime(), 0, 100, 10, flops=1e6) as writer:
        metrics = {"loss": jax.numpy.ones(()), "images_per_second": jax.numpy.ones(())}
        for step in range(1, 7):
            writer.hold(step, metrics, bad_images=5)  # of 8
        with pytest.raises(UserError, match="35 images could not be decoded, where 56 were"):
            writer.hold(7, metrics, bad_images=5)
