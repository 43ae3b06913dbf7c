"""Flags of the commands that show an encoder images."""

from collections.abc import Callable
from typing import Any

from absl import flags

from resa_jax.errors import UserError


flags.disclaim_key_flags()  # they are the flags of the command that calls this


def define_statistics() -> Callable[[], dict[str, Any]]:
    """The flags --mean and --std of an encoder's images; returns what reads them."""
    for name, default in (("mean", "0.485,0.456,0.406"), ("std", "0.229,0.224,0.225")):
        flags.DEFINE_list(
            name,
            None,
            f"Of the images' channels, as {default}; else the encoder's own, or what is assumed of "
            "PyTorch weights that do not say.",
        )

    def read():
        given = {name: flags.FLAGS[name].value for name in ("mean", "std")}
        try:
            return {n: tuple(map(float, texts)) for n, texts in given.items() if texts is not None}
        except ValueError:
            raise UserError(
                "--mean and --std need numbers with commas between, as 0.5,0.5,0.5."
            ) from None

    return read
