"""Features of a trained network, computed once per checkpoint and source and kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from resa_jax.checkpoint import read_config
from resa_jax.data.augment import center_crop, normalize
from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import SMALL, Source
from resa_jax.encoder import find_checkpoint, read_children, read_encoder
from resa_jax.errors import UserError
from resa_jax.models.encoders import create_projector, is_vit
from resa_jax.models.spec import EncoderSpec
from resa_jax.sharding import batch_sharding, create_mesh


# What a network offers: the encoding, the projector's hidden layers, the embedding.
LAYERS = ("h", "p0", "p1", "z")


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to the network's input.

    Attributes:
      size: side of the square that the network sees, pixels.
      resize: short side to which the image is resized before its centre is cropped, pixels.
      interpolation: "bicubic" or "bilinear", antialiased.
      mean, std: of the channels, in 0..1.
    """

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, spec: EncoderSpec, interpolation: str = "bicubic") -> "Preprocessing":
        """The one that an encoder was made for; without a size on record ImageNet's 256 : 224."""
        size = spec.image_size
        resize = spec.resize or (size if size <= SMALL else round(size * 256 / 224))
        return cls(spec.image_size, resize, interpolation, tuple(spec.mean), tuple(spec.std))

    def __call__(
        self, images: UInt8[Array, "n c c 3"], sizes: Int[Array, "n 2"]
    ) -> Float[Array, "n s s 3"]:
        """Normalised inputs; arguments as `evaluation_batches` gives them."""
        pixels = center_crop(
            images, sizes, size=self.size, resize=self.resize, interpolation=self.interpolation
        )
        return normalize(pixels, self.mean, self.std)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained encoder and, where the checkpoint holds it, its projector.

    Attributes:
      path: where it was read from.
      network: "ema" or "online".
      step: train step of the checkpoint, None where that is not on record.
      params, batch_stats: nested dicts with the keys "encoder" and perhaps "projector".
      projector: structure of the projector, None where there is none.
    """

    path: Path
    network: str
    step: int | None
    spec: EncoderSpec
    encoder: nnx.GraphDef
    projector: nnx.GraphDef | None
    params: dict
    batch_stats: dict

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the features that it offers."""
        return LAYERS if self.projector is not None else LAYERS[:1]

    def fingerprint(self) -> str:
        """A hash of all weights."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.spec)).encode())
        weights = jax.tree_util.tree_leaves_with_path((self.params, self.batch_stats))
        for keys, leaf in weights:
            digest.update(jax.tree_util.keystr(keys).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def forward(self, params, batch_stats, inputs, layers) -> dict[str, Float[Array, "n d"]]:
        """The named layers for normalised inputs, in evaluation mode; pure, to be jitted."""
        encoder = nnx.merge(self.encoder, params["encoder"], batch_stats["encoder"])
        outputs = {"h": encoder(inputs, train=False)}
        if set(layers) - {"h"}:
            projector = nnx.merge(self.projector, params["projector"], batch_stats["projector"])
            values = projector.layers(outputs["h"], train=False)
            outputs |= dict(zip(LAYERS[1:], values, strict=True))
        return {name: outputs[name].astype(jnp.float32) for name in layers}


def load_network(path: str | Path, arch: str | None = None, network: str = "ema") -> TrainedNetwork:
    """Reads a network from a workdir, `DIR/checkpoints/STEP`, an export, or PyTorch weights.

    Args:
      path, arch, network: as for `load_encoder`. An export that lies in its run's folder is read
        from the checkpoint of its step, where that is still there, since this has the projector.

    Raises:
      UserError: when `path` is none of these.
    """
    path = Path(path)
    is_export = (path / "encoder.json").is_file()
    if path.is_file() or is_export:
        spec, params, batch_stats = read_encoder(path, arch, network)
        step = json.loads((path / "encoder.json").read_text()).get("step") if is_export else None
        if is_export and (path.parent / "checkpoints" / str(step)).is_dir():
            return load_network(path.parent / "checkpoints" / str(step), arch, network)
        trees = {"encoder": params}, {"encoder": batch_stats}
        return TrainedNetwork(path, network, step, spec, spec.build(), None, *trees)
    path = find_checkpoint(path)
    config = json.loads(read_config(path))
    spec = EncoderSpec.from_config(config)
    children = read_children(path, network, ("encoder", "projector"))

    def projector():
        num_features = children["projector"][0]["linear1"]["kernel"].shape[0]
        return create_projector(spec.name, num_features, **config["projector"], rngs=nnx.Rngs(0))

    graphdef = nnx.split(nnx.eval_shape(projector), nnx.Param, nnx.BatchStat)[0]
    params, batch_stats = ({k: c[n] for k, c in children.items()} for n in (0, 1))
    step = int(path.name)
    network = network if config["momentum_network"] else "online"
    return TrainedNetwork(path, network, step, spec, spec.build(), graphdef, params, batch_stats)


def extract(
    network: TrainedNetwork,
    source: Source,
    source_name: str,
    preprocessing: Preprocessing,
    layers: tuple[str, ...] = ("h",),
    *,
    rows: Int[np.ndarray, " m"] | None = None,
    batch_size: int = 256,
    cache: Path | None = None,
) -> dict[str, np.ndarray]:
    """Features of the images of a source, in evaluation mode, over all devices.

    Args:
      source_name: the string that names the source.
      layers: those of `network.layers` that are wanted.
      rows: positions in the source, None for all.
      cache: folder that keeps them, by the network's weights, the source's content (of files the
        path, size and date) and the preprocessing; None keeps nothing.

    Returns:
      Each layer as float32 [n, d], `labels` int32 [n] (-1: none) and `indices` int32 [n], positions
      in the source. Images left out as undecodable have no row.

    Raises:
      UserError: a layer that the network lacks; an image size that a ViT's patches do not divide.
    """
    missing = [layer for layer in layers if layer not in network.layers]
    if missing:
        raise UserError(
            f"{network.path} holds an encoder without its projector, so there is no {missing[0]}; "
            "give the run's workdir or one of its checkpoints."
        )
    rows = np.arange(len(source)) if rows is None else rows
    key = _cache_key(network, source, source_name, preprocessing, rows)
    folder = None if cache is None else cache / key
    if folder is not None and all(_file(folder, name).is_file() for name in (*layers, "labels")):
        names = (*layers, "labels", "indices")
        return {name: np.load(_file(folder, name), mmap_mode="r") for name in names}
    results = _compute(network, source, preprocessing, layers, rows, batch_size)
    if folder is not None:
        _store(folder, results)
    return results


def last_tokens(
    network: TrainedNetwork, params, batch_stats, inputs: Float[Array, "n h w 3"], blocks: int
) -> Float[Array, "n d"]:
    """What the linear evaluation of a ViT reads, in evaluation mode.

    With several blocks their [CLS] tokens side by side, each through the last LayerNorm (4 for
    ViT-S); with one block, [CLS] and the mean of the patches (ViT-B). Source: resa@6b774ef,
    eval_linear.py.
    """
    encoder = nnx.merge(network.encoder, params["encoder"], batch_stats["encoder"])
    if not is_vit(network.spec.name):
        return encoder(inputs, train=False)
    if blocks > 1:
        return encoder.last_cls(inputs, blocks)
    x = encoder.tokens(inputs, train=False)
    for index in range(encoder.depth):
        x = getattr(encoder, f"blocks_{index}")(x, train=False)
    x = encoder.norm(x)
    return jnp.concatenate([x[:, 0], x[:, 1:].mean(axis=1)], axis=1)


def _compute(network, source, preprocessing, layers, rows, batch_size):
    forward = _compile(network, preprocessing, layers)
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


def _compile(network: TrainedNetwork, preprocessing: Preprocessing, layers) -> Callable:
    params, batch_stats = jax.tree.map(jnp.asarray, (network.params, network.batch_stats))

    @jax.jit
    def forward(params, batch_stats, images, sizes):
        return network.forward(params, batch_stats, preprocessing(images, sizes), layers)

    return partial(forward, params, batch_stats)


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
    outputs = {name: np.asarray(values)[there] for name, values in outputs.items()}
    return outputs, batch["labels"][there], batch["indices"][there]


def _cache_key(network, source, source_name, preprocessing, rows) -> str:
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
    return f"{network.fingerprint()}-{digest.hexdigest()[:16]}"


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
