"""A trained encoder in use: `load_encoder` for every format, and what it gives."""

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from resa_jax.checkpoint import read_config
from resa_jax.config import from_json
from resa_jax.data.augment import normalize
from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError
from resa_jax.methods.interface import create_method
from resa_jax.models.network import Network, evaluate_layers, split
from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, as_path
from resa_jax.sharding import replicated
from resa_jax.weights.export import is_export, read_description
from resa_jax.weights.reading import find_checkpoint, read_children, read_encoder
from resa_jax.weights.released import released_weights


class Encoder:
    """A trained encoder in evaluation mode, with its projector where that was read too.

    Attributes:
      path: where it was read from.
      network: "ema" or "online".
      step: train step that it is of, None where that is not on record.
      spec: what it takes to build and feed it.
      graphdef, params, batch_stats: of the network, the last two nested dicts with the keys
        "encoder" and perhaps "projector".
      num_features: of an encoding.
      layer_names: what `layers` gives: "encoding" and, with a projector, "p0", ..., "embedding".
    """

    def __init__(
        self,
        spec: EncoderSpec,
        params: dict,
        batch_stats: dict,
        *,
        projector: nnx.Module | None = None,
        path: AnyPath = Path(),
        network: str = "ema",
        step: int | None = None,
    ):
        """
        Args:
          projector: its structure; then params and batch_stats hold its arrays.
        """
        module = Network(spec.create(), projector)
        self.path, self.network, self.step, self.spec = path, network, step, spec
        self.num_features: int = module.encoder.num_features
        self.graphdef = split(module)[0]
        self.params = jax.tree.map(jnp.asarray, params)
        self.batch_stats = jax.tree.map(jnp.asarray, batch_stats)
        self.layer_names = module.layer_names

    def __call__(self, images: Any) -> Float[Array, "n d"]:
        """Encodings of images of the encoder's size (networks with pooling take other sizes too).

        Args:
          images: an array [n, h, w, c], of 3 channels unless the encoder's spec says otherwise;
            uint8 (uint16 where the spec says 16 bits) is normalised with the encoder's own mean and
            std; floats are taken as normalised already.

        Raises:
          UserError: for another shape or dtype.
        """
        how = self.spec.decoding
        check_images(images, how)
        if images.dtype == how.dtype:
            pixels = jnp.asarray(images, jnp.float32)
            images = normalize(pixels, self.spec.mean, self.spec.std, how.white)
        return self.layers(images, layers=("encoding",))["encoding"]

    def layers(self, *arrays, prepare=None, layers: tuple[str, ...]) -> dict[str, Array]:
        """The named layers; see `evaluate_layers`."""
        return evaluate_layers(
            self.graphdef, self.params, self.batch_stats, *arrays, prepare=prepare, layers=layers
        )

    def linear_features(self, *arrays, prepare=None, blocks: int) -> Float[Array, "n d"]:
        """What a linear evaluation reads of the last blocks; arguments as in `evaluate_layers`."""
        trees = self.params, self.batch_stats
        outputs = evaluate_layers(self.graphdef, *trees, *arrays, prepare=prepare, blocks=blocks)
        return outputs["linear"]

    def replicate(self, mesh: Mesh) -> "Encoder":
        """The same encoder with its weights on every device of a mesh."""
        placed = copy.copy(self)
        trees = self.params, self.batch_stats
        placed.params, placed.batch_stats = jax.device_put(trees, replicated(mesh))
        return placed

    def fingerprint(self) -> str:
        """A hash of all weights."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.spec)).encode())
        weights = jax.tree_util.tree_leaves_with_path((self.params, self.batch_stats))
        for keys, leaf in weights:
            digest.update(jax.tree_util.keystr(keys).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


def check_images(images: Any, how: Decoding) -> None:
    """Raises a `UserError` for what would give encodings of something else than these images."""
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    wanted = f"[n, h, w, {how.channels}]"
    if shape is None or dtype is None:
        raise UserError(
            f"The images are a {type(images).__name__}; they must be one array {wanted}, as "
            "numpy.stack makes of a list."
        )
    if len(shape) != 4 or shape[3] != how.channels:
        hint = ""
        if len(shape) == 3 and shape[2] == how.channels:
            hint = " One image needs a leading axis: images[None]."
        elif len(shape) == 4 and shape[1] == how.channels:
            hint = " Move the channels to the end: images.transpose(0, 2, 3, 1)."
        raise UserError(f"The images have the shape {tuple(shape)}, not {wanted}.{hint}")
    if dtype != how.dtype and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"The images are {dtype}; they must be {how.dtype} from 0 to {how.white}, or floats "
            "that are normalised already."
        )


def load_encoder(
    path: str | os.PathLike,
    arch: str | None = None,
    network: str = "ema",
    *,
    projector: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Encoder:
    """Loads an encoder for use, in evaluation mode.

    Args:
      path: a run's workdir (its latest checkpoint), `WORKDIR/checkpoints/STEP`, an export
        (`WORKDIR/encoder`), PyTorch weights (`.pth`, `.safetensors`), or a folder that holds such
        a file and timm's or Hugging Face's config.json.
      arch: architecture of PyTorch weights, where their shapes leave it open.
      network: "ema", or "online" where the file holds both.
      projector: also read the projector, where there is one. An export that lies in its run's
        folder is then read from the checkpoint of its step, where that is still there.
      mean, std: of the channels, in 0..1, by which uint8 images are normalised, in the place of
        what the path says or, where PyTorch weights say nothing, of what is assumed of them.

    Returns:
      A callable from images `[n, h, w, 3]` (or the channels of its spec) to encodings `[n, d]`.

    Raises:
      UserError: when `path` is none of these.
    """
    path = as_path(path)
    step = read_description(path).get("step") if is_export(path) else None
    saved = path.parent / "checkpoints" / str(step)
    if step is not None and projector and saved.is_dir():
        return load_encoder(saved, arch, network, projector=True, mean=mean, std=std)
    if path.is_file() or is_export(path) or released_weights(path) is not None:
        told = None not in (mean, std)
        spec, params, batch_stats = read_encoder(path, arch, network, told=told)
        spec = spec.normalized(mean, std)
        trees = {"encoder": params}, {"encoder": batch_stats}
        return Encoder(spec, *trees, path=path, network=network, step=step)
    encoder = _load_checkpoint(find_checkpoint(path), network, projector)
    encoder.spec = encoder.spec.normalized(mean, std)
    return encoder


def _load_checkpoint(path: AnyPath, network: str, projector: bool) -> Encoder:
    config = from_json(read_config(path), path)
    spec, method = EncoderSpec.from_config(config), create_method(config.method)
    names = ("encoder", "projector") if projector else ("encoder",)
    children = read_children(path, network, names)
    params, batch_stats = ({k: c[n] for k, c in children.items()} for n in (0, 1))
    head = None
    if projector:
        head = nnx.eval_shape(lambda: method.heads(spec.create(), nnx.Rngs(0)).projector)
    return Encoder(
        spec,
        params,
        batch_stats,
        projector=head,
        path=path,
        network=network if method.momentum_network else "online",
        step=int(path.name),
    )
