"""Trained encoders on disk and in use: the export of a run, and `load_encoder` for every format."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from orbax.checkpoint import v1 as ocp

from resa_jax.checkpoint import read_config, read_subtree
from resa_jax.data.augment import normalize
from resa_jax.errors import UserError
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights import read_torch_encoder


class Encoder:
    """A trained encoder in evaluation mode: calling it turns images into encodings."""

    def __init__(self, spec: EncoderSpec, params: dict, batch_stats: dict):
        self.spec = spec
        self.params = jax.tree.map(jnp.asarray, params)
        self.batch_stats = jax.tree.map(jnp.asarray, batch_stats)
        self.graphdef = spec.build()
        self.num_features: int = nnx.merge(
            self.graphdef, self.params, self.batch_stats
        ).num_features

        @jax.jit
        def encode(params, batch_stats, images):
            return nnx.merge(self.graphdef, params, batch_stats)(images, train=False)

        self._encode = encode

    def __call__(
        self, images: Float[Array | np.ndarray, "n h w 3"] | UInt8[Array | np.ndarray, "n h w 3"]
    ) -> Float[Array, "n d"]:
        """Encodings of images of the encoder's size (networks with pooling take other sizes too).

        Args:
          images: uint8 is normalised with the encoder's own mean and std; floats are taken as
            normalised already.
        """
        if images.dtype == np.uint8:
            pixels = jnp.asarray(images, jnp.float32)
            images = normalize(pixels, self.spec.mean, self.spec.std)
        return self._encode(self.params, self.batch_stats, images)


def load_encoder(path: str | os.PathLike, arch: str | None = None, network: str = "ema") -> Encoder:
    """Loads an encoder for use, in evaluation mode.

    Args:
      path: a run's workdir (its latest checkpoint), `WORKDIR/checkpoints/STEP`, an export
        (`WORKDIR/encoder`), or PyTorch weights (`.pth`, `.safetensors`).
      arch: architecture of PyTorch weights, where their shapes leave it open.
      network: "ema", or "online" where the file holds both.

    Returns:
      A callable from images `[n, h, w, 3]` to encodings `[n, d]`.

    Raises:
      UserError: when `path` is none of these.
    """
    return Encoder(*read_encoder(Path(path), arch, network))


def read_encoder(
    path: Path, arch: str | None = None, network: str = "ema"
) -> tuple[EncoderSpec, dict, dict]:
    """Specification, parameters and batch statistics of the encoder that `load_encoder` loads."""
    if path.is_file():
        return read_torch_encoder(path, arch, network)
    if (path / "encoder.json").is_file():
        return _read_export(path, network)
    path = find_checkpoint(path)
    children = read_children(path, network, ("encoder",))
    spec = EncoderSpec.from_config(json.loads(read_config(path)))
    return spec, *children["encoder"]


def find_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint, given it or its run's workdir."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path
    steps = [p for p in path.glob("checkpoints/*") if p.name.isdigit()]
    if not steps:
        raise UserError(
            f"{path} holds no encoder; give a run's workdir, one of its checkpoints/STEP, its "
            "encoder folder, or a .pth or .safetensors file."
        )
    return max(steps, key=lambda p: int(p.name))


def read_children(path: Path, network: str, names: tuple[str, ...]) -> dict[str, tuple[dict, dict]]:
    """Parameters and batch statistics of some children of a network in the checkpoint `path`.

    Args:
      network: "ema" or "online"; a run without an EMA network has only its online one.
      names: of "encoder", "projector" and "predictor".
    """
    prefix = "ema_" if network == "ema" else ""
    wanted = [f"{prefix}{part}/{name}" for part in ("params", "batch_stats") for name in names]
    found = read_subtree(path, *wanted)
    if prefix and not any(name.startswith("ema_params") for name in found):
        return read_children(path, "online", names)
    return {
        name: (found[f"{prefix}params/{name}"], found.get(f"{prefix}batch_stats/{name}", {}))
        for name in names
    }


def export_encoder(
    directory: Path, spec: EncoderSpec, params: dict, batch_stats: dict, **provenance
) -> None:
    """Writes an encoder to `directory`, replacing an earlier export there only once it is whole.

    Args:
      provenance: JSON values kept with it, such as the network and step that it comes from.
    """
    temporary = directory.with_name(directory.name + ".tmp")
    if jax.process_index() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    ocp.save(temporary.absolute() / "weights", {"params": params, "batch_stats": batch_stats})
    if jax.process_index() == 0:
        description = dataclasses.asdict(spec) | provenance
        (temporary / "encoder.json").write_text(json.dumps(description, indent=2) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)


def _read_export(path, network):
    description = json.loads((path / "encoder.json").read_text())
    # As in a checkpoint, "ema" takes the online encoder of a run that had no other.
    if network == "online" and description.get("network") == "ema":
        raise UserError(
            f"{path} holds the EMA encoder; read a checkpoint of the run for the online one."
        )
    names = [field.name for field in dataclasses.fields(EncoderSpec)]
    values = {name: description[name] for name in names}
    values |= {name: tuple(values[name]) for name in ("mean", "std")}
    weights = (path / "weights").absolute()
    abstract = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), ocp.metadata(weights).metadata
    )
    tree = ocp.load(weights, abstract)
    return EncoderSpec(**values), tree["params"], tree["batch_stats"]
