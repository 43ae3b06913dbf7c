"""Real images for the tests: pieces of the two photographs that scikit-learn brings.

Where `RESA_JAX_TEST_DATA` (default ../shared/data) holds the sample archives of ImageNet and
CIFAR-10, the tests of decoding and of augmentation run on those as well.
"""

import os
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image


ROOT = Path(__file__).resolve().parent.parent
SAMPLES = Path(os.environ.get("RESA_JAX_TEST_DATA", ROOT / "../shared/data"))
IMAGENET = SAMPLES / "imagenet-sample" / "train-000-499.tar"
CIFAR = SAMPLES / "cifar10-jpeg" / "test.tar.gz"
# What a test is parametrised with that runs on every collection of images there is.
PHOTOGRAPHS = ["scikit-learn", *(["imagenet"] if IMAGENET.exists() else [])]
SMALL_IMAGES = ["scikit-learn", *(["cifar"] if CIFAR.exists() else [])]


def photographs(folder: Path, count: int = 24, collection: str = "scikit-learn") -> Path:
    """Writes photographs as train/CLASS/NAME.JPEG, each of a class of its own.

    Most are about 500 x 375, like ImageNet's: as wide as high or not, a few above 512 pixels, one
    so large that the decoder itself reduces it.
    """
    if collection == "imagenet":
        return _unpack(IMAGENET, folder, count)
    random = np.random.default_rng(0)
    for number in range(count):
        image = _original(number)
        if number == 2:
            image = image.resize((1500, 1001), Image.Resampling.BICUBIC)
        elif number != 3:  # which stays 640 x 427
            size = (500, 375) if number % 3 else (375, 427)
            image = _crop(image, random, [int(side * random.uniform(0.8, 1)) for side in size])
        path = folder / "train" / f"class{number:02}" / f"{number:04}.JPEG"
        path.parent.mkdir(parents=True)
        image.save(path, "JPEG", quality=90)
    return folder


def small_images(folder: Path, per_class: int = 4, collection: str = "scikit-learn") -> Path:
    """Writes images of 32 x 32 pixels and ten classes, as CLASS/NNNN.jpg.

    A class is a fifth of one of the photographs, from left to right.
    """
    if collection == "cifar":
        return _unpack(CIFAR, folder, 10 * per_class, 1000 // per_class)
    random = np.random.default_rng(1)
    for number in range(10):
        image, fifth = _original(number // 5), number % 5
        column = image.crop((128 * fifth, 0, 128 * (fifth + 1), 427))
        path = folder / f"{('china', 'flower')[number // 5]}{fifth}"
        path.mkdir(parents=True)
        for k in range(per_class):
            side = int(random.integers(64, 129))
            small = _crop(column, random, (side, side)).resize((32, 32), Image.Resampling.BOX)
            small.save(path / f"{k:04}.jpg", "JPEG", quality=95)
    return folder


def _original(number: int) -> Image.Image:
    """A photograph of 640 x 427 pixels: a temple (even numbers) or a flower."""
    return Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))


def _crop(image, random, size):
    left, top = (
        int(random.integers(0, whole - side + 1))
        for whole, side in zip(image.size, size, strict=True)
    )
    return image.crop((left, top, left + size[0], top + size[1]))


def _unpack(archive: Path, folder: Path, count: int, every: int = 1) -> Path:
    """Unpacks `count` images, each `every`-th of the archive."""
    with tarfile.open(archive) as tar:
        for position, member in enumerate(tar):
            if position >= count * every:
                break
            if position % every == 0:
                tar.extract(member, folder, filter="data")
    return folder


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
            features = {"image": image, "label": label, "file_name": tfds.features.Text()}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for path in paths:
                example = {"image": str(path), "label": path.parent.name, "file_name": path.name}
                yield f"{path.parent.name}/{path.name}", example

    Images.name = name
    Images(data_dir=data_dir, file_format="array_record").download_and_prepare()
