"""The images of a folder and the classes that they lie in, listed without reading one of them."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from resa_jax.errors import UserError


IMAGE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"),
    *("pbm", "pnm", "jp2", "j2k", "avif", "tga"),
)
# What operating systems and storage devices leave in folders, and hidden files.
_NOT_OF_THE_SET = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


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
