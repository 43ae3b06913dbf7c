"""Encoders as StableHLO, for serving without this package."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from resa_jax.encoder import Encoder


def export_stablehlo(encoder: Encoder, platforms: tuple[str, ...] = ("cpu",)) -> bytes:
    """Serialises an encoder with a symbolic batch size.

    Args:
      encoder: as `load_encoder` returns it.
      platforms: of jax.export, those that the file is to run on.

    Returns:
      A function from uint8 images [n, size, size, 3], normalised inside, to float32 encodings
      [n, d], in the format of `jax.export`.
    """

    def encode(images):
        return encoder(images).astype(jnp.float32)

    size = encoder.spec.image_size
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return bytes(export.export(jax.jit(encode), platforms=platforms)(images).serialize())


def check_export(encoder: Encoder, serialized: bytes, batches: tuple[int, ...] = (1, 5)) -> float:
    """The largest difference between an encoder and its export, loaded back, on random images."""
    call = export.deserialize(bytearray(serialized)).call
    size, rng = encoder.spec.image_size, np.random.default_rng(0)
    worst = 0.0
    for batch in batches:
        images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
        difference = np.abs(np.asarray(call(images)) - np.asarray(encoder(images)))
        worst = max(worst, float(difference.max()))
    return worst
