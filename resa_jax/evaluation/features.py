"""Features of a trained network, computed once per checkpoint and source and kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int

from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import Source
from resa_jax.encoder import Encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.sharding import create_mesh, to_devices


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
      source_name: the string that names the source, and its split.
      layers: those of `encoder.layer_names` that are wanted.
      rows: positions in the source, each once; None for all.
      batch_size: images at a time; it does not depend on the source, so that all sources of one
        canvas share a program.
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
    if folder is not None and _on_all_processes(
        all(_file(folder, name).is_file() for name in (*layers, "labels"))
    ):
        names = (*layers, "labels", "indices")
        return {name: np.load(_file(folder, name), mmap_mode="r") for name in names}
    mesh = create_mesh()
    forward = partial(encoder.replicate(mesh).layers, prepare=preprocessing, layers=layers)
    results = encode_rows(forward, source, rows, batch_size, mesh)
    if folder is not None and jax.process_index() == 0:
        _store(folder, results)
    return results


def _on_all_processes(value: bool) -> bool:
    # Else one of them would read what the others compute together.
    return bool(multihost_utils.process_allgather(np.array(value)).all())


def encode_rows(
    forward: Callable[[Array, Array], dict[str, Array]],
    source: Source,
    rows: Int[np.ndarray, " m"],
    batch_size: int,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """What a network gives for some images of a source, over all devices of all processes.

    Labels and indices travel with the images, so that the order of the devices in the mesh does not
    matter; every process gets all rows.

    Args:
      forward: from images and sizes, as `evaluation_batches` gives them, to named arrays.
      rows: positions in the source, each once.
      batch_size: images at a time; rounded up to what the devices divide.

    Returns:
      Each named array as float32 [n, d], `labels` int32 [n] (-1: none) and `indices` int32 [n],
      those of `rows`, in their order, that could be decoded.
    """
    places = np.full(len(source), -1)
    places[rows] = np.arange(len(rows))
    results, there = {}, np.zeros(len(rows), bool)
    for outputs in _gathered(forward, source, rows, batch_size, mesh):
        # Filling has the index -1, a bad image's stand-in that of another row or of none.
        indices = outputs["indices"]
        place = np.where(indices < 0, -1, places[indices])
        kept = place >= 0
        there[place[kept]] = True
        for name, values in outputs.items():
            if name not in results:
                dtype = values.dtype if name in ("labels", "indices") else np.float32
                results[name] = np.empty((len(rows), *values.shape[1:]), dtype)
            results[name][place[kept]] = values[kept]
    return results if there.all() else {name: values[there] for name, values in results.items()}


def _gathered(forward, source, rows, batch_size, mesh) -> Iterator[dict[str, np.ndarray]]:
    """Each batch's outputs; the devices work on a batch while the last one is fetched."""
    held = None
    with evaluation_batches(
        source,
        rows=rows,
        batch_size=-(-batch_size // mesh.size) * mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ) as stream:
        for batch in stream:
            names = ("images", "sizes", "labels", "indices")
            images, sizes, labels, indices = to_devices(batch, mesh, names)
            outputs = forward(images, sizes) | {"labels": labels, "indices": indices}
            if held is not None:
                yield multihost_utils.process_allgather(held, tiled=True)
            held = outputs
    if held is not None:
        yield multihost_utils.process_allgather(held, tiled=True)


def _cache_key(encoder, source, source_name, preprocessing, rows) -> str:
    digest = hashlib.sha256(source_name.encode())
    digest.update(np.asarray(rows, np.int64).tobytes())
    facts = dataclasses.asdict(preprocessing), source.class_names
    digest.update(json.dumps(facts).encode())
    if source.in_memory:
        digest.update(np.ascontiguousarray(source.images.pixels).tobytes())
        labels = source.labels
        digest.update(b"" if labels is None else np.ascontiguousarray(labels).tobytes())
    else:
        in_files = source.paths is not None
        for name in map(source.images.name, rows.tolist()):
            status = os.stat(name) if in_files else None
            digest.update(name.encode())
            digest.update(f" {status.st_size} {status.st_mtime_ns}\n".encode() if status else b"\n")
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
