"""`tfds:` from real JPEGs in ArrayRecord files: with workers, without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_samples import unpack_photographs

from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source


ROOT = Path(__file__).parents[1]
CANVAS = 64


class Photographs(tfds.core.GeneratorBasedBuilder):
    """ImageNet photographs as they are: the JPEG files' bytes are stored, none is decoded."""

    VERSION = tfds.core.Version("1.0.0")
    folder = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=sorted({p.parent.name for p in self.files})),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    @property
    def files(self):
        return sorted(self.folder.rglob("*.JPEG"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in self.files:
            yield path.name, {"image": str(path), "label": path.parent.name}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    Photographs.folder = unpack_photographs(tmp_path_factory.mktemp("images"), count=16)
    data_dir = tmp_path_factory.mktemp("tfds")
    Photographs(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def stream(source, workers, **options):
    with batches(
        source, batch_size=8, seed=1, start_step=0, num_steps=3, workers=workers, **options
    ) as steps:
        return list(steps)


def test_workers_and_processes_give_the_same_batches(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    source = open_source("tfds:photographs", canvas=CANVAS)
    assert len(source) == 16 and not source.in_memory
    alone = stream(source, workers=0)
    halves = [stream(source, workers=2, process_index=i, process_count=2) for i in range(2)]
    assert len(alone) == len(halves[0]) == 3
    for whole, *parts in zip(alone, *halves, strict=True):
        for name in ("images", "sizes", "labels", "indices"):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])
    first_epoch = np.concatenate([step["indices"] for step in alone[:2]])
    assert sorted(first_epoch) == list(range(16))
    assert alone[0]["images"].std() > 10
    assert "tensorflow" not in sys.modules


def test_a_run_with_tensorflow_out_of_reach(data_dir, tmp_path):
    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.path.insert(0, '.')\n"
        "from resa_jax import train\n"
        "from resa_jax.config import load_config\n"
        "if __name__ == '__main__':\n"
        "    overrides = ['data.source=tfds:photographs', 'data.workers=2', 'steps=2']\n"
        "    config = load_config('configs/imagenet_resnet50.py:smoke', overrides)\n"
        "    config.encoder.image_size = 32\n"
        "    for view in config.views: view.size = 32\n"
        f"    print(train(config, {str(tmp_path / 'run')!r})['step'])\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "encoder" / "encoder.json").exists()
