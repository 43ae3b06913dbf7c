"""Finds the mistakes in the name of a source without importing anything heavy.

A command calls `check_source` before it imports JAX, so that a wrong path is answered at once.
"""

import importlib.util
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence

from resa_jax.data.decoding import RGB, Decoding
from resa_jax.data.folder import list_folder
from resa_jax.data.listing import read_list
from resa_jax.data.npz import npz_shapes
from resa_jax.errors import UserError


KINDS = "digits, folder:PATH, list:FILE, npz:FILE, tfds:NAME, hf:NAME"
NUM_DIGITS = 1797
_TFDS_NAME = re.compile(r"(\w+)(?:/([^/:]+))?(?::([\w.*]+))?")


def check_source(
    name: str,
    how: Decoding | None = RGB,
    *,
    classes: str | None = None,
    long_tail: float | int | None = None,
    split: str = "train",
) -> int | None:
    """Looks for mistakes in a source's name and returns its number of images where that is cheap.

    The arguments are those of `open_source`, but None where an encoder will say how images are
    decoded. Files are listed, and headers read, but no image.

    Raises:
      UserError: an unknown kind of source, a path that does not exist, a folder without images, an
        npz file or a TFDS data set of the wrong form, a class that the source lacks.
    """
    kind, place = split_name(name)
    if classes is not None:
        read_classes(classes, ())
    sizes: dict[str, int] | None = None
    count: int | None
    if kind == "digits":
        if how is not None and (how.channels not in (1, 3) or how.bits != 8):
            raise UserError(
                f"digits has gray images of 8 bits; data.channels={how.channels} and "
                f"data.bits={how.bits} must be 1 or 3, and 8."
            )
        count = NUM_DIGITS
    elif kind in ("folder", "list"):
        folder = list_folder(place) if kind == "folder" else read_list(place)
        count = len(folder.names)
        if folder.labels is not None:
            counter = Counter(folder.labels)
            sizes = {name: counter[label] for label, name in enumerate(folder.class_names)}
    elif kind == "npz":
        count = npz_shapes(place, how)["images"][0]
    elif kind == "hf":
        _check_huggingface(name)
        count = None  # only the library itself knows
    else:
        count = _tfds_count(*choose_split(place, split))
    if classes is None and long_tail is None:
        return count
    if kind not in ("folder", "list"):
        return None  # the labels would have to be read
    if sizes is None:
        what = "class folders" if kind == "folder" else "labels"
        raise UserError(f"{name} has no {what}, so classes cannot be chosen from it.")
    chosen = list(sizes) if classes is None else read_classes(classes, sizes)
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
    if name == "digits" or (kind in ("folder", "list", "npz", "tfds", "hf") and place):
        return kind, place if kind == "tfds" else os.path.expanduser(place)
    hint = f" Did you mean folder:{name}?" if os.path.isdir(name) else ""
    raise UserError(f"{name!r} is no source of images: it must be one of {KINDS}.{hint}")


def choose_split(place: str, split: str) -> tuple[str, str]:
    """A data set of TFDS or `datasets` and its split: `NAME@SPLIT` names its own."""
    name, _, own = place.partition("@")
    return name, own or split


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


def _check_huggingface(name: str) -> None:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"{name} needs Hugging Face's package datasets: pip install 'resa_jax[hf]'."
        )


def _last(path: str) -> str:
    return os.path.basename(path)


def read_classes(path: str, there: Collection[str]) -> list[str]:
    """The class that each line names; blank lines and lines that start with # don't count.

    Args:
      there: the classes of the source. A line that is one of them names it, spaces included; of
        other lines the first word counts.
    """
    if not os.path.isfile(path):
        raise UserError(f"data.classes={path}: there is no such file.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.classes={path} is not in UTF-8 ({error.reason}, byte {error.start}); save it so."
        ) from error
    names = [line if line in there else line.split()[0] for line in lines]
    if not names:
        raise UserError(f"data.classes={path} names no class; write one a line.")
    twice = [] if not there else [name for name, count in Counter(names).items() if count > 1]
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
