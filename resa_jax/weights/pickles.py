"""detectron2's pickles, read so that nothing in them can run or ask for memory."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from resa_jax.errors import UserError


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays, and refuses anything else that a pickle could call.

    What makes arrays takes no more memory than the file has bytes for them.
    """

    _ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("builtins", "bytearray"),
            ("_codecs", "encode"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *(
                (f"numpy.{core}.{module}", name)
                for core in ("core", "_core")
                for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
            ),
        }
    )

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _BOUNDED.get((module, name)) or super().find_class(module, name)


class _Refused(Exception):
    pass


class _BoundedArray(np.ndarray):
    """`numpy.ndarray` that must be given the bytes that it holds."""

    def __new__(cls, shape, dtype=float, buffer=None, *arguments):
        if buffer is None or np.dtype(dtype).hasobject:
            raise _Refused("numpy.ndarray without its values")
        return np.ndarray(shape, dtype, buffer, *arguments)


def _bounded_bytearray(*values):
    if values and not isinstance(values[0], bytes | str):
        raise _Refused(f"bytearray({values[0]!r})")
    return bytearray(*values)


def _bounded_encode(text, encoding="utf-8", *rest):
    if encoding not in ("latin1", "utf-8", "ascii"):
        raise _Refused(f"_codecs.encode with {encoding}")
    return text.encode(encoding, *rest)


def _reconstruct(kind, shape, dtype):
    if tuple(shape) != (0,):
        raise _Refused("a NumPy array without its values")
    return np.ndarray((0,), dtype)  # __setstate__ brings the rest, with its bytes


_BOUNDED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _BoundedArray,
    ("builtins", "bytearray"): _bounded_bytearray,
    ("_codecs", "encode"): _bounded_encode,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


def read_pickle(path: Path) -> Any:
    """The content of a pickle of plain values and NumPy arrays."""
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except _Refused as refused:
        raise refusal(path, refused) from refused
    except Exception as error:  # a damaged pickle can fail in any way
        raise damaged(path, error) from error


def write_pickle(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as detectron2 reads them."""

    # Arrays as calls of numpy.ndarray(shape, dtype, buffer): every version of NumPy knows these,
    # while its own pickles name modules that moved in NumPy 2.
    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, np.ndarray):
                return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
            return NotImplemented

    content = {"model": tensors, "__author__": "resa_jax", "matching_heuristics": True}
    with path.open("wb") as file:
        Pickler(file, protocol=4).dump(content)


def refusal(path: Path, name: object) -> UserError:
    """What to say of a file with an object that could run code."""
    return UserError(
        f"{path} was not loaded: it holds the Python object {name}, which could run code. "
        "Only tensors and plain values are read; save the state dict alone."
    )


def damaged(path: Path, error: object) -> UserError:
    """What to say of a file that cannot be read."""
    reason = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, Exception):
        reason = ": ".join(filter(None, (type(error).__name__, reason)))
    return UserError(f"{path} is damaged or of another kind than its ending says ({reason}).")
