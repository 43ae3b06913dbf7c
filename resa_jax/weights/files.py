"""Tensor files on disk: `.safetensors`, PyTorch's `.pth` and detectron2's `.pkl`, read and written.

No file can run code here: PyTorch files go through its restricted loader, pickles through one that
knows NumPy arrays only. PyTorch is imported for its own files alone.
"""

import argparse
import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from resa_jax.errors import UserError
from resa_jax.weights.pickles import damaged, read_pickle, refusal, write_pickle


SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".pkl")
_READ_ONLY = (".ckpt", ".bin", ".torch")  # other names of PyTorch's files
# What training scripts keep a network's tensors under, and two networks side by side.
_CONTAINERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "network", "state_dict_ema"),
)
_PAIR = ("student", "teacher")

_HALF = (np.float16, ml_dtypes.bfloat16)

_MOST_TENSORS = 20_000  # of one file; large networks have a few thousand

# Under this name our own files carry the encoder's description, out of the way of other readers.
_SPEC = "resa_jax.encoder"


@dataclass(frozen=True)
class TensorFile:
    """What a tensor file holds.

    Attributes:
      path: the file.
      tensors: by PyTorch's name; half precision is widened to float32.
      others: names of what the file holds besides, as "epoch" or "optimizer".
      widened: how many tensors were in half precision.
      spec: the encoder's description, in files that resa_jax wrote; else None.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    others: tuple[str, ...]
    widened: int
    spec: dict | None


def is_tensor_file(path: Path) -> bool:
    """Whether the name ends as that of a weights file that can be written."""
    return path.name.endswith(SUFFIXES)


def read_tensors(path: Path) -> TensorFile:
    """Reads a tensor file, by its ending.

    Raises:
      UserError: for a missing or damaged file, another ending, a pickle that holds more than
        tensors and plain values, or a `.pth` where PyTorch is not installed.
    """
    if not path.name.endswith((*SUFFIXES, *_READ_ONLY)):
        endings = ", ".join((*SUFFIXES, *_READ_ONLY))
        raise UserError(f"{path}: a weights file must end in one of {endings}.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    others = []
    if path.suffix == ".safetensors":
        values, spec = _read_safetensors(path)
    else:
        content = read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
        if not isinstance(content, Mapping):
            raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name.")
        values, used = _tensors_of(content)
        others = [str(key) for key in content if key not in used] if used else []
        spec = getattr(values, "_metadata", {}).get("", {}).get(_SPEC)
    arrays = {str(name): _to_array(value) for name, value in values.items()}
    others += [name for name, array in arrays.items() if array is None]
    tensors = {name: array for name, array in arrays.items() if array is not None}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name.")
    half = [name for name, array in tensors.items() if array.dtype in _HALF]
    tensors |= {name: tensors[name].astype(np.float32) for name in half}
    return TensorFile(path, tensors, tuple(others), len(half), _read_spec(path, spec))


def _tensors_of(content: Mapping) -> tuple[Mapping, list]:
    """The tensors of a PyTorch file by name, and the keys that they are under, if any."""
    pair = [key for key in _PAIR if isinstance(content.get(key), Mapping)]
    if pair:
        return {f"{key}.{name}": x for key in pair for name, x in content[key].items()}, pair
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            return content[key], [key]
    return content, []


def _read_spec(path, text):
    try:
        spec = None if text is None else json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(spec, dict | None):
        raise damaged(path, f"its {_SPEC} is no JSON object")
    return spec


def write_tensors(path: Path, tensors: dict[str, np.ndarray], spec: dict) -> None:
    """Writes tensors by name in the format of the path's ending; all of the file or none of it.

    Args:
      spec: the encoder's description, of JSON values. It travels in the metadata of `.safetensors`
        or in those that PyTorch keeps with a state dict; others read plain tensors.
    """
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            # `save_file` would leave a file that its owner alone may read, whatever the umask.
            metadata = {"format": "pt", _SPEC: json.dumps(spec)}
            temporary.write_bytes(save(tensors, metadata=metadata))
        elif path.suffix == ".pkl":
            write_pickle(temporary, tensors)
        else:
            _write_torch(temporary, tensors, spec, _import_torch(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_array(value) -> np.ndarray | None:
    """A tensor of any kind as an array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):  # no PyTorch tensor; PyTorch may be absent
        return None
    value = value.detach()
    if str(value.dtype) == "torch.bfloat16":  # NumPy has none of its own
        return value.float().numpy().astype(ml_dtypes.bfloat16)
    return value.numpy()


def _read_safetensors(path):
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise UserError(
                    f"{path} holds {len(names)} tensors; no network has more than {_MOST_TENSORS}."
                )
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, (file.metadata() or {}).get(_SPEC)
    except UserError:
        raise
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or no .safetensors file ({error}).") from error


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: this kind of file needs PyTorch, which is not installed; "
            "`pip install torch` or use .safetensors."
        ) from error
    return torch


def _read_torch(path):
    torch = _import_torch(path)
    try:
        # The arguments of a training script, which are plain values, lie beside many a network.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted loader meets damage with exceptions of many kinds
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise refusal(path, refused.group(1)) from error
        # PyTorch's own words would advise to load the file without the restriction.
        unsafe_advice = "weights_only" in str(error)
        raise damaged(path, "PyTorch cannot unpickle it" if unsafe_advice else error) from error


def _write_torch(path, tensors, spec, torch):
    state: Any = OrderedDict((name, torch.from_numpy(value)) for name, value in tensors.items())
    # Where `torch.nn.Module.state_dict` keeps versions: `load_state_dict` passes over the rest.
    state._metadata = OrderedDict({"": {"version": 1, _SPEC: json.dumps(spec)}})
    torch.save(state, path)
