"""What pre-training can start from: all networks of a full checkpoint, or an encoder for both."""

from orbax.checkpoint import v1 as ocp

from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, absolute, local_input
from resa_jax.weights.export import read_tree
from resa_jax.weights.files import read_tensors
from resa_jax.weights.reading import read_encoder
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import networks_from_torch


# Beside the encoder in an export that was converted from a full checkpoint.
_FOLDER = "networks"


def save_networks(export: AnyPath, networks: dict[str, dict]) -> None:
    """Adds all networks of a full checkpoint to an encoder's export."""
    ocp.save(absolute(export / _FOLDER), networks)


def read_networks(path: AnyPath, arch: str | None = None) -> tuple[EncoderSpec, dict[str, dict]]:
    """The networks to start pre-training from.

    Args:
      path: a full checkpoint of the authors' code or an export converted from one, for all of its
        networks; or anything that `resa_jax.load_encoder` reads, for its encoder.
      arch: name of the encoder, where the shapes of PyTorch weights leave it open.

    Returns:
      The encoder's description, and the trees "params", "batch_stats", "ema_params" and
      "ema_batch_stats", from the children that there are ("encoder"; "projector", "predictor") to
      nested dicts of NumPy arrays. An encoder alone is in the online and in the EMA trees.

    Raises:
      UserError: for a path that holds no encoder.
    """
    if path.is_file():
        with local_input(path) as file:
            checkpoint = sort_networks(read_tensors(file))
        if checkpoint.is_full:
            return networks_from_torch(checkpoint, arch)[:2]
    spec, params, batch_stats = read_encoder(path, arch, told=True)  # the recipe says
    if (path / _FOLDER).is_dir():
        return spec, read_tree(path / _FOLDER)
    stats = {"encoder": batch_stats} if batch_stats else {}
    params = {"encoder": params}
    return spec, {
        "params": params,
        "batch_stats": stats,
        "ema_params": params,
        "ema_batch_stats": stats,
    }
