"""An encoder from anything that holds one: a run, a checkpoint, an export, PyTorch's files."""

import logging

from resa_jax.checkpoint import read_config, read_subtree
from resa_jax.config import from_json
from resa_jax.errors import UserError
from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, local_input
from resa_jax.weights.export import is_export, read_export
from resa_jax.weights.files import read_tensors
from resa_jax.weights.released import read_release, released_weights
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import encoder_from_torch
from resa_jax.workdir import checkpoint_paths


_LOG = logging.getLogger("resa_jax")


def read_encoder(
    path: AnyPath, arch: str | None = None, network: str = "ema", *, told: bool = False
) -> tuple[EncoderSpec, dict, dict]:
    """Description, parameters and batch statistics of an encoder.

    Args:
      path: a run's workdir (its latest checkpoint), `WORKDIR/checkpoints/STEP`, an export, or a
        file of PyTorch's tensors (`.safetensors`, `.pth`, `.pt`, `.pth.tar`, detectron2's `.pkl`),
        or a folder of timm's or Hugging Face's with such a file and a config.json.
      arch: its name, where the shapes of PyTorch's tensors leave it open.
      network: "ema" or "online", where both are there; "ema" takes what there is.
      told: the caller knows how images are normalised; else it is said when a file does not.

    Raises:
      UserError: for a path that holds no encoder, or not exactly one.
    """
    if path.is_file():
        with local_input(path) as file:
            tensors = read_tensors(file)
            encoder = encoder_from_torch(sort_networks(tensors), arch, network).encoder
        if tensors.spec is None and not told:
            _LOG.warning(
                "Warning: %s does not say how images were normalised. Assumed are mean %s and std "
                "%s; --mean and --std say otherwise.",
                path,
                ",".join(map(str, encoder[0].mean)),
                ",".join(map(str, encoder[0].std)),
            )
        return encoder
    if is_export(path):
        return read_export(path, network)
    if (weights := released_weights(path)) is not None:
        release = read_release(path)
        told = told or None not in (release.mean, release.std)
        spec, params, batch_stats = read_encoder(weights, arch or release.arch, network, told=told)
        return release.described(spec), params, batch_stats
    path = find_checkpoint(path)
    children = read_children(path, network, ("encoder",))
    return EncoderSpec.from_config(from_json(read_config(path), path)), *children["encoder"]


def find_checkpoint(path: AnyPath) -> AnyPath:
    """The folder of a checkpoint, given it or its run's workdir."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path
    paths = checkpoint_paths(path)
    if not paths:
        raise UserError(
            f"{path} holds no encoder; give a run's workdir, one of its checkpoints/STEP, its "
            "encoder folder, or a .pth or .safetensors file."
        )
    return paths[-1]


def read_children(
    path: AnyPath, network: str, names: tuple[str, ...]
) -> dict[str, tuple[dict, dict]]:
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
