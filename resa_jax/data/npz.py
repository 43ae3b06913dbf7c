"""The headers of npz files, read without NumPy, and what reading such a file can raise."""

import ast
import math
import os
import struct
import tokenize
import zipfile
import zlib

from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError


# What zipfile and NumPy raise for a file that is damaged or was never an npz file.
NPZ_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, KeyError),
    *(MemoryError, NotImplementedError, OSError, RecursionError, RuntimeError, SyntaxError),
    *(TypeError, ValueError),
)


def npz_shapes(path: str, how: Decoding | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays `images` and `labels` of an npz file, read from their headers.

    Args:
      how: what the images must be; None takes any that could be some encoder's.

    Raises:
      UserError: no such file, not an npz file, no `images`, or arrays of the wrong type or shape.
    """
    if not os.path.isfile(path):
        raise UserError(f"npz:{path}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            if "images" not in members:
                found = ", ".join(sorted(members)) or "no array"
                raise UserError(
                    f"npz:{path} needs an array `images`, and holds {found}."
                    " Write it with numpy.savez(FILE, images=..., labels=...)."
                )
            headers = {
                name: _npy_header(archive, f"{name}.npy")
                for name in ("images", "labels")
                if name in members
            }
    except UserError:
        raise
    except NPZ_FAULTS as error:
        raise UserError(f"npz:{path} is not a file that numpy.savez wrote: {error}.") from error
    dtype, shape = headers["images"]
    given = shape[3] if len(shape) == 4 else 1
    if how is None:
        channels = given if given in range(2, 17) else 3
        how = Decoding(channels=channels, bits=16 if dtype[1:] == "u2" else 8)
    channels = how.channels
    if len(shape) == 3 and shape[2] == channels > 1:
        raise UserError(
            f"npz:{path}: `images` of shape {shape} is one image, or {shape[0]} gray ones of "
            f"{channels} pixels width. Write [n, height, width, {channels}]; one image as "
            "images[None]."
        )
    fits = given == channels or (given == 1 and channels == 3)
    if dtype[1:] != f"u{how.bits // 8}" or len(shape) not in (3, 4) or not fits or 0 in shape:
        gray = "[n, height, width], [n, height, width, 1] or " if channels == 3 else ""
        raise UserError(
            f"npz:{path}: `images` must be {how.dtype} of shape {gray}[n, height, width, "
            f"{channels}], as data.bits={how.bits} and data.channels={channels} have it; it is "
            f"{dtype!r} of shape {shape}."
        )
    if "labels" in headers:
        dtype, labels_shape = headers["labels"]
        if dtype[1:2] not in ("i", "u") or labels_shape not in (shape[:1], (shape[0], 1)):
            raise UserError(
                f"npz:{path}: `labels` must be integers of shape {shape[:1]}, one for each image; "
                f"it is {dtype!r} of shape {labels_shape}."
            )
    _refuse_too_large(path, shape, how)
    return {name: header[1] for name, header in headers.items()}


def _refuse_too_large(path: str, shape: tuple[int, ...], how: Decoding) -> None:
    """A small archive may inflate to more than the machine can hold."""
    needed = math.prod(shape[:3]) * how.channels * how.bits // 8
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory // 2:
        raise UserError(
            f"npz:{path}: `images` of shape {shape} take {needed / 2**30:.1f} GiB, and are held in "
            f"memory, of which this machine has {memory / 2**30:.1f} GiB. Keep them in a folder."
        )


def _npy_header(archive: zipfile.ZipFile, member: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape from the header of a .npy file (NumPy's format specification, NEP 1)."""
    with archive.open(member) as file:
        start = file.read(8)
        if start[:6] != b"\x93NUMPY":
            raise zipfile.BadZipFile(f"{member} is no NumPy array")
        layout = "<H" if start[6] == 1 else "<I"
        (length,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
        header = ast.literal_eval(file.read(min(length, 2**16)).decode("latin1"))
        shape = header["shape"]
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{member} has the shape {shape}")
    return str(header["descr"]), shape
