"""Features of a trained network, computed once per checkpoint and source and kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import Source
from resa_jax.encoder import Encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.sharding import batch_sharding, create_mesh


def extract(
    encoder: Encoder,
    source: Source,
    source_name: str,
    preprocessing: Preprocessing,
    layers: tuple[str, ...] = ("encoding",),
    *,
    rows: Int[np.ndarray, " m"] | None = None,
    batch_size: int = 256,
    cache: Path | None = None,
) -> dict[str, np.ndarray]:
    """Features of the images of a source, in evaluation mode, over all devices.

    Args:
      source_name: the string that names the source.
      layers: those of `encoder.layer_names` that are wanted.
      rows: positions in the source, None for all.
      cache: folder that keeps them, by the network's weights, the source's content (of files the
        path, size and date) and the preprocessing; None keeps nothing.

    Returns:
      Each layer as float32 [n, d], `labels` int32 [n] (-1: none) and `indices` int32 [n], positions
      in the source. Images left out as undecodable have no row.

    Raises:
      UserError: a layer that the network lacks; an image size that a ViT's patches do not divide.
    """
    missing = [layer for layer in layers if layer not in encoder.layer_names]
    if missing:
        raise UserError(
            f"{encoder.path} holds no layer {missing[0]!r}, only {', '.join(encoder.layer_names)}; "
            "give the run's workdir or one of its checkpoints."
        )
    rows = np.arange(len(source)) if rows is None else rows
    key = _cache_key(encoder, source, source_name, preprocessing, rows)
    folder = None if cache is None else cache / key
    if folder is not None and all(_file(folder, name).is_file() for name in (*layers, "labels")):
        names = (*layers, "labels", "indices")
        return {name: np.load(_file(folder, name), mmap_mode="r") for name in names}
    results = _compute(encoder, source, preprocessing, layers, rows, batch_size)
    if folder is not None:
        _store(folder, results)
    return results


def _compute(encoder, source, preprocessing, layers, rows, batch_size):
    forward = partial(encoder.layers, prepare=preprocessing, layers=layers)
    results, filled = {}, 0
    for outputs, labels, indices in _batches(forward, source, rows, batch_size):
        outputs |= {"labels": labels, "indices": indices}
        for name, values in outputs.items():
            if name not in results:
                shape = (len(rows), *values.shape[1:])
                results[name] = np.empty(shape, values.dtype)
            results[name][filled : filled + len(values)] = values
        filled += len(labels)
    return {name: values[:filled] for name, values in results.items()}


def _batches(forward: Callable, source: Source, rows: np.ndarray, batch_size: int):
    """Runs `forward` over the source; the device works on a batch while the last one is fetched."""
    mesh = create_mesh()
    batch_size = -(-min(batch_size, len(rows)) // mesh.size) * mesh.size
    held, start = None, 0
    with evaluation_batches(source, rows=rows, batch_size=batch_size) as stream:
        for batch in stream:
            # Bad images' stand-ins and the last batch's filling have other indices than asked for.
            asked = rows[start : start + batch_size]
            there = np.zeros(batch_size, bool)
            there[: len(asked)] = batch["indices"][: len(asked)] == asked
            start += batch_size
            images, sizes = (
                jax.device_put(batch[name], batch_sharding(mesh)) for name in ("images", "sizes")
            )
            outputs = forward(images, sizes)
            if held is not None:
                yield _fetch(*held)
            held = outputs, there, batch
    if held is not None:
        yield _fetch(*held)


def _fetch(outputs, there, batch):
    outputs = {n: np.asarray(values)[there].astype(np.float32) for n, values in outputs.items()}
    return outputs, batch["labels"][there], batch["indices"][there]


def _cache_key(encoder, source, source_name, preprocessing, rows) -> str:
    digest = hashlib.sha256(source_name.encode())
    digest.update(np.asarray(rows, np.int64).tobytes())
    digest.update(json.dumps(dataclasses.asdict(preprocessing)).encode())
    if source.in_memory:
        digest.update(np.ascontiguousarray(source.images.pixels).tobytes())
        labels = source.labels
        digest.update(b"" if labels is None else np.ascontiguousarray(labels).tobytes())
    else:
        digest.update(str(len(source)).encode())
        for path in source.paths or ():
            status = os.stat(path)
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"{encoder.fingerprint()}-{digest.hexdigest()[:16]}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _store(folder: Path, results: dict[str, np.ndarray]) -> None:
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, values in results.items():
        np.save(_file(temporary, name), values)
    shutil.rmtree(folder, ignore_errors=True)  # of other layers
    temporary.rename(folder)
