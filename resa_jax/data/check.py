"""Finds the mistakes in the name of a source without importing anything heavy.

A command calls `check_source` before it imports JAX, so that a wrong path is answered at once.
"""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from resa_jax.data.npz import npz_shapes
from resa_jax.errors import UserError


KINDS = "digits, folder:PATH, npz:FILE, tfds:NAME"
IMAGE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"),
    *("pbm", "pnm", "jp2", "j2k", "avif", "tga"),
)
# What operating systems and storage devices leave in folders, and hidden files.
_NOT_OF_THE_SET = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
NUM_DIGITS = 1797
_TFDS_NAME = re.compile(r"(\w+)(?:/([^/:]+))?(?::([\w.*]+))?")


def check_source(
    name: str,
    *,
    classes: str | None = None,
    long_tail: float | int | None = None,
    split: str = "train",
) -> int | None:
    """Looks for mistakes in a source's name and returns its number of images where that is cheap.

    The arguments are those of `open_source`. Files are listed, and headers read, but no image.

    Raises:
      UserError: an unknown kind of source, a path that does not exist, a folder without images, an
        npz file or a TFDS data set of the wrong form, a class that the source lacks.
    """
    kind, place = split_name(name)
    wanted = None if classes is None else read_classes(classes)
    sizes: dict[str, int] | None = None
    count: int | None
    if kind == "digits":
        count = NUM_DIGITS
    elif kind == "folder":
        folder = list_folder(place)
        count = len(folder.names)
        if folder.labels is not None:
            counter = Counter(folder.labels)
            sizes = {name: counter[label] for label, name in enumerate(folder.class_names)}
    elif kind == "npz":
        count = npz_shapes(place)["images"][0]
    else:
        count = _tfds_count(*choose_split(place, split))
    if wanted is None and long_tail is None:
        return count
    if kind != "folder":
        return None  # the labels would have to be read
    if sizes is None:
        raise UserError(f"{name} has no class folders, so classes cannot be chosen from it.")
    chosen = list(sizes) if wanted is None else wanted
    refuse_missing_classes(name, chosen, sizes)
    kept = [sizes[name] for name in chosen]
    return sum(kept if long_tail is None else long_tail_sizes(kept, long_tail))


def check_batch_size(batch_size: int, count: int, source: str) -> None:
    """Refuses a batch that is empty or larger than its source."""
    if batch_size < 1:
        raise UserError(
            f"config.batch_size is {batch_size}; it must be from 1 to the {count} images "
            f"of {source}."
        )
    if batch_size > count:
        raise UserError(
            f"config.batch_size is {batch_size}, but {source} holds only {count} images; a batch "
            "takes each at most once."
        )


def split_name(name: str) -> tuple[str, str]:
    """`folder:PATH` as ("folder", PATH)."""
    kind, _, place = name.partition(":")
    if name == "digits" or (kind in ("folder", "npz", "tfds") and place):
        return kind, place if kind == "tfds" else os.path.expanduser(place)
    hint = f" Did you mean folder:{name}?" if os.path.isdir(name) else ""
    raise UserError(f"{name!r} is no source of images: it must be one of {KINDS}.{hint}")


def choose_split(place: str, split: str) -> tuple[str, str]:
    """A TFDS data set and its split: `NAME@SPLIT` names its own, any other takes `split`."""
    name, _, own = place.partition("@")
    return name, own or split


class Folder(NamedTuple):
    """The images below `root`: paths relative to it, in order, and their classes."""

    root: str
    names: list[str]
    labels: list[int] | None
    class_names: tuple[str, ...]
    remarks: list[str]  # sentences on what was left out


def list_folder(root: str) -> Folder:
    """Lists a folder's images in a fixed order, with labels from the folders that they lie in.

    A class is a folder below `root` (below `root/train` where everything lies in that one folder),
    with all that lies deeper. There are no labels where an image lies outside of such folders or
    where there are fewer than two. Hidden files and folders are left out, as are those that
    operating systems make; links are followed.

    Raises:
      UserError: there is no such folder, no image in it, or its folders are splits, not classes.
    """
    if not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"folder:{root}: the path {what}.")
    left_out: Counter[str] = Counter()
    names = list(_walk(root, left_out))
    if not names:
        raise UserError(
            f"folder:{root} holds no image, at any depth: files that end in "
            f"{', '.join('.' + ending for ending in IMAGE_ENDINGS)} count, in either case."
        )
    common = os.path.commonpath({os.path.dirname(name) for name in names})
    depth = common.count("/") + 1 if common else 0
    parts = [name.split("/") for name in names]
    remarks = [f"left out {count} {what}." for what, count in sorted(left_out.items())]
    stray = [name for name, part in zip(names, parts, strict=True) if len(part) == depth + 1]
    if stray:
        if len(stray) < len(names):
            remarks.append(
                f"{len(stray)} of the {len(names)} images, such as {stray[0]}, lie outside of the "
                "class folders, so that there are no labels."
            )
        return Folder(root, names, None, (), remarks)
    class_names = sorted({part[depth] for part in parts})
    if len(class_names) > 1 and {name.lower() for name in class_names} <= _SPLITS:
        place = os.path.join(root, common, class_names[0])
        raise UserError(
            f"folder:{root} holds the splits {', '.join(class_names)}, which are no classes. Give "
            f"one of them, as folder:{place}."
        )
    numbers = {name: label for label, name in enumerate(class_names)}
    labels = [numbers[part[depth]] for part in parts]
    return Folder(root, names, labels, tuple(class_names), remarks)


def _walk(
    root: str, left_out: Counter, below: str = "", above: frozenset = frozenset()
) -> Iterator[str]:
    """Yields the images' paths below `root/below`; `above` has the folders on the way there.

    `left_out` counts what is no image, by what it is.
    """
    folder = os.path.join(root, below)
    try:
        status = os.stat(folder)
        this = status.st_dev, status.st_ino
        if this in above:  # a link that leads back
            return
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    deeper = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _NOT_OF_THE_SET:
            continue
        kind = _kind(entry)
        if kind == "folder":
            deeper.append(entry.name)
        elif kind == "image":
            yield below + entry.name
        else:
            left_out[kind] += 1
    for name in deeper:
        yield from _walk(root, left_out, f"{below}{name}/", above | {this})


def _kind(entry: os.DirEntry) -> str:
    """ "folder", "image", or in the plural what is left out."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            return "links that lead nowhere"
        raise UserError(f"{entry.path} cannot be read: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        return "pipes, sockets and devices"
    stem, _, ending = entry.name.rpartition(".")
    if ending.lower() in IMAGE_ENDINGS:
        return "image"
    return f"files that end in .{ending}" if stem else "files without an ending"


def _tfds_count(name: str, split: str) -> int | None:
    match = _TFDS_NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"tfds:{name} is no name of a TFDS data set: write tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME/CONFIG:VERSION."
        )
    data_dir = os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    if "://" in data_dir:
        return None  # a bucket: only TFDS itself can look
    folder = os.path.join(data_dir, *(part for part in match.groups()[:2] if part))
    infos = [
        os.path.join(where, "dataset_info.json")
        for where, _, files in os.walk(folder)
        if "dataset_info.json" in files
        and (match[3] is None or re.fullmatch(match[3].replace("*", r"\d+"), _last(where)))
    ]
    if not infos:
        raise UserError(
            f"tfds:{name} has not been prepared: there is no such data set in {folder}. Set "
            "TFDS_DATA_DIR to where it lies, or prepare it once, with `pip install "
            f"'resa_jax[tfds]'` and then `python -c \"import tensorflow_datasets as tfds; "
            f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\"`."
        )
    if len(infos) > 1:
        return None  # which one, TFDS decides
    with open(infos[0], encoding="utf-8") as file:
        info = json.load(file)
    if info.get("fileFormat") != "array_record":
        raise UserError(
            f"tfds:{name} in {folder} was prepared as {info.get('fileFormat')!r}, which has no "
            "random access. Prepare it again with file_format='array_record'."
        )
    lengths = {part["name"]: part.get("shardLengths", []) for part in info.get("splits", [])}
    if re.split(r"\W", split)[0] not in lengths:
        raise UserError(f"tfds:{name} has no split {split!r}; it has {', '.join(lengths)}.")
    return sum(map(int, lengths[split])) if split in lengths else None


def _last(path: str) -> str:
    return os.path.basename(path)


def read_classes(path: str) -> list[str]:
    """The first word of each line; blank lines and lines that start with # don't count."""
    if not os.path.isfile(path):
        raise UserError(f"data.classes={path}: there is no such file.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.split()[0] for line in file if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.classes={path} is not in UTF-8 ({error.reason}, byte {error.start}); save it so."
        ) from error
    if not names:
        raise UserError(f"data.classes={path} names no class; write one a line.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"data.classes={path} names the class {twice[0]!r} more than once.")
    return names


def refuse_missing_classes(source: str, wanted: Sequence[str], there) -> None:
    """Raises a `UserError` that names the wanted classes which are not `there`."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(
            f"{source} has no class {missing[0]!r} ({len(missing)} of the {len(wanted)} wanted "
            f"classes are missing). It has {len(there)}, from {min(there)!r} to {max(there)!r}."
        )


def long_tail_sizes(sizes: Sequence[int], imbalance: float | int) -> list[int]:
    """How many images of each class stay: floor(n (1/imbalance)^(i / (C - 1))) of class i of C.

    n is the size of the smallest class, so that each class has enough. With CIFAR-100's 100 classes
    of 500 and an imbalance of 20 that makes CIFAR-100-LT's 15,907 images.

    Raises:
      UserError: the imbalance is below 1, or there are fewer than two classes.
    """
    if not (imbalance >= 1 and math.isfinite(imbalance)):
        raise UserError(
            f"data.long_tail={imbalance} must be at least 1: the largest class over the smallest."
        )
    if len(sizes) < 2:
        raise UserError("data.long_tail needs a source with labels of at least two classes.")
    last = len(sizes) - 1
    return [int(min(sizes) * (1 / imbalance) ** (i / last)) for i in range(len(sizes))]
