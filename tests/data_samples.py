"""Real images for the tests, unpacked from the sample archives."""

import os
import tarfile
from pathlib import Path

import pytest


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
