"""Real images for the tests, unpacked from the sample archives."""

import os
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds


ROOT = Path(__file__).resolve().parent.parent
SAMPLES = Path(os.environ.get("RESA_JAX_TEST_DATA", ROOT / "../shared/data"))


def unpack(archive: str, folder: Path, count: int, every: int = 1) -> Path:
    """Unpacks `count` images into `folder`, each `every`-th of the archive, or skips the test."""
    path = SAMPLES / archive
    if not path.exists():
        pytest.skip(f"the sample images {path} are absent (set RESA_JAX_TEST_DATA)")
    with tarfile.open(path) as tar:
        for position, member in enumerate(tar):
            if position >= count * every:
                break
            if position % every == 0:
                tar.extract(member, folder, filter="data")
    return folder


def unpack_photographs(folder: Path, count: int = 24) -> Path:
    """ImageNet photographs, as train/SYNSET/NAME.JPEG, most of them about 500x375."""
    return unpack("imagenet-sample/train-000-499.tar", folder, count)


def unpack_cifar(folder: Path, per_class: int = 4) -> Path:
    """CIFAR-10 test images of all classes, as CLASS/NNNN.jpg, 32x32."""
    return unpack("cifar10-jpeg/test.tar.gz", folder, 10 * per_class, 1000 // per_class)


def prepare_tfds(data_dir: Path, name: str, folder: Path, shape: tuple) -> None:
    """Writes a TFDS data set in ArrayRecord files from class folders; "train" and "test" are equal.

    Args:
      shape: of every image, with None for what varies.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=shape, encoding_format="jpeg")
            label = tfds.features.ClassLabel(names=sorted({path.parent.name for path in paths}))
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for path in paths:
                key = f"{path.parent.name}/{path.name}"
                yield key, {"image": str(path), "label": path.parent.name}

    Images.name = name
    Images(data_dir=data_dir, file_format="array_record").download_and_prepare()
