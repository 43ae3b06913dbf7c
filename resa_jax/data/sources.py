"""Sources of images: one string names each of them everywhere."""

import functools
import io
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from resa_jax.data import check
from resa_jax.data.decode import BadImageError, gray_peak, image_size, shrink
from resa_jax.data.decoding import RGB, Decoding
from resa_jax.data.folder import Folder, list_folder
from resa_jax.data.held import HELD_SIDE, in_memory, small_or_large
from resa_jax.data.images import FolderImages, RecordImages, Source
from resa_jax.data.listing import read_list
from resa_jax.data.npz import NPZ_FAULTS
from resa_jax.errors import UserError


_PROBES = 64
_LOG = logging.getLogger("resa_jax")


def open_source(
    name: str,
    how: Decoding = RGB,
    *,
    classes: str | None = None,
    long_tail: float | int | None = None,
    on_bad_image: str = "error",
    split: str = "train",
) -> Source:
    """Opens a source by its name.

    `digits`, `folder:PATH`, `list:FILE` (see `read_list`), `npz:FILE`, `tfds:NAME`, also
    NAME/CONFIG:VERSION@SPLIT, or of Hugging Face's `datasets` `hf:NAME_OR_FOLDER`, also NAME@SPLIT.

    Images are upright, of the channels, type and size that `how` says; see `decode_image`. A set of
    small images (up to 96 pixels) is decoded whole here, with the largest sides met as its canvas,
    so that a damaged file is found before the first step; of other sets each image is decoded when
    it is asked for. For the labels of a folder see `list_folder`.

    Args:
      classes: a text file with one class a line (anything after the first word is ignored, as are
        blank lines and lines that start with #): only these classes stay, numbered in that order.
      long_tail: keeps the first images of each class, ever fewer from class to class, as
        `long_tail_sizes` says; the largest class over the smallest.
      on_bad_image: "error", or "skip": an image that cannot be decoded is left out (small images)
        or the next good one stands in for it (others).
      split: of a `tfds:` or `hf:` set whose name holds none ("train", "test", "train[:10%]").

    Raises:
      UserError: a mistake in an argument, or an image that cannot be decoded (names the file).
    """
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"data.on_bad_image={on_bad_image!r} must be 'error' or 'skip'.")
    check.check_source(name, how, classes=classes, long_tail=long_tail, split=split)
    kind, place = check.split_name(name)
    choose = functools.partial(_choose, name, classes=classes, long_tail=long_tail)
    skip = on_bad_image == "skip"
    if kind == "digits":
        return _open_digits(how, choose)
    if kind == "npz":
        return _open_npz(place, how, choose)
    if kind == "folder":
        return _open_files(list_folder(place), name, how, choose, skip)
    if kind == "list":
        return _open_files(read_list(place), name, how, choose, skip)
    if kind == "hf":
        return _open_huggingface(*check.choose_split(place, split), how, choose, skip)
    return _open_tfds(*check.choose_split(place, split), how, choose, skip)


def open_sources(data: ConfigDict, batch_size: int) -> tuple[Source, Source | None]:
    """The source to train on and, where the recipe names one, the source to test on.

    Args:
      data: `config.data`.

    Raises:
      UserError: as `open_source`, or when the batch exceeds the source.
    """
    how = Decoding.of(data)
    options = {name: data[name] for name in ("classes", "on_bad_image")}
    source = open_source(data.source, how, long_tail=data.long_tail, split="train", **options)
    check.check_batch_size(batch_size, len(source), data.source)
    if data.test_source is None:
        return source, None
    return source, open_source(data.test_source, how, split="test", **options)


def _choose(
    source: str,
    labels: Callable[[], np.ndarray | None],
    class_names: tuple[str, ...],
    *,
    classes: str | None,
    long_tail: float | int | None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """The indices of the chosen images with their new labels and names, or None for all images."""
    if classes is None and long_tail is None:
        return None
    old = labels()
    if old is None:
        raise UserError(f"{source} has no labels, so classes cannot be chosen from it.")
    numbers = {name: label for label, name in enumerate(class_names)}
    names = class_names if classes is None else tuple(check.read_classes(classes, numbers))
    check.refuse_missing_classes(source, names, numbers)
    members = [np.flatnonzero(old == numbers[name]) for name in names]
    if long_tail is not None:
        sizes = check.long_tail_sizes([len(indices) for indices in members], long_tail)
        members = [indices[:size] for indices, size in zip(members, sizes, strict=True)]
    new = np.repeat(np.arange(len(names), dtype=np.int32), [len(indices) for indices in members])
    indices = np.concatenate(members).astype(np.int32)
    order = np.argsort(indices)  # the order of the source, not class after class
    return indices[order], new[order], names


def _open_digits(how: Decoding, choose: Callable) -> Source:
    from sklearn.datasets import load_digits  # heavy, and needed for nothing else here

    digits = load_digits()
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    class_names = tuple(str(name) for name in digits.target_names)
    return _from_arrays(gray, digits.target.astype(np.int32), class_names, how, choose)


def _open_npz(path: str, how: Decoding, choose: Callable) -> Source:
    arrays = read_npz(path, f"npz:{path}", ("images", "labels"))
    labels, class_names = None, tuple[str, ...]()
    if "labels" in arrays:
        labels, class_names = number_classes(arrays["labels"].reshape(-1), f"npz:{path}: `labels`")
    images = arrays["images"]
    if how.bits == 16:
        images = np.minimum(images, how.gray_max).astype(np.uint16)
    return _from_arrays(images, labels, class_names, how, choose)


def read_npz(
    path: str | os.PathLike, name: str, only: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing pickled is loaded.

    Args:
      name: how messages call the file.
      only: the arrays to read, of those that there are; None: all.

    Raises:
      UserError: the file is damaged, or of another kind.
    """
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = None
            if isinstance(loaded, np.lib.npyio.NpzFile):
                wanted = [key for key in loaded.files if only is None or key in only]
                arrays = {key: loaded[key] for key in wanted}
    except NPZ_FAULTS as error:
        raise UserError(f"{name} cannot be read as an npz file: {error}.") from error
    if arrays is None:
        raise UserError(f"{name} holds one array without a name: write it with numpy.savez.")
    return arrays


def number_classes(
    labels: Integer[np.ndarray, " n"], name: str
) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Labels counted from 0, and their classes' names: the numbers as they were given.

    Numbers below n stay what they are, also where some are missing. Larger ones, such as dates or
    ids, are counted in their order, so that nothing grows with their size.

    Args:
      name: how messages call them.
    """
    if labels.min() < 0:
        raise UserError(f"{name} must not be negative; one is {labels.min()}.")
    if labels.max() < len(labels):
        return labels.astype(np.int32), tuple(map(str, range(int(labels.max()) + 1)))
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int32), tuple(map(str, values.tolist()))


def _from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    how: Decoding,
    choose: Callable,
) -> Source:
    chosen = choose(lambda: labels, class_names)
    if chosen is not None:
        indices, labels, class_names = chosen
        images = images[indices]
    if images.ndim == 3:
        images = images[..., None]
    images = np.broadcast_to(images, (*images.shape[:3], how.channels))
    if how.size(*images.shape[1:3]) != images.shape[1:3]:
        images = np.stack([shrink(np.ascontiguousarray(image), how) for image in images])
    return in_memory(list(images), labels, class_names)


def _open_files(folder: Folder, title: str, how: Decoding, choose: Callable, skip: bool) -> Source:
    for line in folder.remarks:
        _LOG.warning("Warning: %s: %s", title, line)
    labels = None if folder.labels is None else np.array(folder.labels, np.int32)
    names, class_names = folder.names, folder.class_names
    chosen = choose(lambda: labels, class_names)
    if chosen is not None:
        indices, labels, class_names = chosen
        names = [names[index] for index in indices]
    images = FolderImages(folder.root, names, labels, how)
    few = np.unique(np.linspace(0, len(images) - 1, _PROBES).astype(int))
    probes = [images.name(index) for index in few.tolist()]
    _speak_of_gray_levels(title, probes, how)
    return small_or_large(images, class_names, _are_small(probes), skip)


def _are_small(files: Sequence[str | io.BytesIO]) -> bool:
    sizes = []
    for file in files:
        try:
            sizes.append(max(image_size(file)))
        except BadImageError:
            continue  # met again, and reported, when it is decoded
    return max(sizes, default=0) <= HELD_SIDE


def _speak_of_gray_levels(title: str, paths: list[str], how: Decoding) -> None:
    peaks = [peak for peak in map(gray_peak, paths) if peak is not None]
    if not peaks:
        return
    peak, white = max(peaks), how.gray_max
    levels = min(peak, white) * how.white // white + 1
    _LOG.info(
        "%s holds gray images of more than 8 bits, with values up to %d. "
        "config.data.gray_max=%d makes %d of %d levels of them.%s",
        title,
        peak,
        white,
        levels,
        how.white + 1,
        f" Is it {2 ** peak.bit_length() - 1}?" if 2 * levels < how.white or peak > white else "",
    )


def _open_tfds(name: str, split: str, how: Decoding, choose: Callable, skip: bool) -> Source:
    import tensorflow_datasets as tfds  # heavy, and not every source needs it

    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    features = builder.info.features
    if "image" not in features:
        raise UserError(f"tfds:{name} has no feature 'image'; it has {', '.join(features)}.")
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    has_labels = "label" in features
    images = RecordImages(
        f"tfds:{name}, split {split}", records, how, has_labels, "file_name" in features
    )
    class_names = tuple(getattr(features["label"], "names", None) or ()) if has_labels else ()
    chosen = choose(lambda: images.labels, class_names)
    if chosen is not None:
        images.__dict__.pop("labels")
        images.chosen, images.chosen_labels, class_names = chosen
    sides = features["image"].shape[:2]
    small = None not in sides and max(sides) <= HELD_SIDE
    return small_or_large(images, class_names, small, skip)


def _open_huggingface(
    place: str, split: str, how: Decoding, choose: Callable, skip: bool
) -> Source:
    from resa_jax.data.huggingface import Records  # its library is an extra

    records = Records(place, split)
    labels, class_names = records.labels, records.class_names
    if labels is not None and not class_names:
        if labels.dtype.kind == "U":
            values, labels = np.unique(labels, return_inverse=True)
            class_names = tuple(map(str, values))
        else:
            labels, class_names = number_classes(labels, f"{records.title}: labels")
    images = RecordImages(records.title, records, how, labels is not None)
    images.chosen_labels = None if labels is None else labels.astype(np.int32)
    chosen = choose(lambda: labels, class_names)
    if chosen is not None:
        images.chosen, images.chosen_labels, class_names = chosen
    few = np.unique(np.linspace(0, len(records) - 1, _PROBES).astype(int))
    probes = [io.BytesIO(records[index]["image"]) for index in few.tolist()]
    return small_or_large(images, class_names, _are_small(probes), skip)
