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
      A function from images [n, height, width, c] as the encoder takes them, uint8 or uint16 and
      normalised inside, to float32 encodings
      [n, d], in the format of `jax.export`.
    """

    def encode(images):
        return encoder(images).astype(jnp.float32)

    spec = encoder.spec
    (batch,) = export.symbolic_shape("batch")
    shape = batch, *spec.height_width, spec.channels
    images = jax.ShapeDtypeStruct(shape, spec.decoding.dtype)
    return bytes(export.export(jax.jit(encode), platforms=platforms)(images).serialize())


def check_export(encoder: Encoder, serialized: bytes, batches: tuple[int, ...] = (1, 5)) -> float:
    """The largest difference between an encoder and its export, loaded back, on random images."""
    call = export.deserialize(bytearray(serialized)).call
    spec, rng = encoder.spec, np.random.default_rng(0)
    how, shape = spec.decoding, (*spec.height_width, spec.channels)
    worst = 0.0
    for batch in batches:
        images = rng.integers(how.white, size=(batch, *shape), dtype=how.dtype, endpoint=True)
        difference = np.abs(np.asarray(call(images)) - np.asarray(encoder(images)))
        worst = max(worst, float(difference.max()))
    return worst
