"""Arrays that are no images: refused before they give encodings of something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax import UserError
from resa_jax.encoder import Encoder
from resa_jax.models.network import Network, split
from resa_jax.models.spec import EncoderSpec


@pytest.fixture(scope="module")
def encoder():
    spec = EncoderSpec("resnet18_small", image_size=8, width=1)
    _, params, stats = split(Network(spec.create(), None))
    fill = lambda leaf: jnp.ones(leaf.shape, leaf.dtype)
    return Encoder(spec, jax.tree.map(fill, params), jax.tree.map(fill, stats))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\), not \[n, h, w, 3\].*images\[None\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\).*transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8), np.uint8), r"shape \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"shape \(2, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((2, 8, 8, 3), np.int64), "are int64; they must be uint8"),
        (np.zeros((2, 8, 8, 3), np.int8), "are int8"),
        (np.zeros((2, 8, 8, 3), np.uint16), "are uint16"),
        (np.zeros((2, 8, 8, 3), bool), "are bool"),
        (np.zeros((2, 8, 8, 3), np.complex64), "are complex64"),
        (np.full((2, 8, 8, 3), None), "are object"),
        (jnp.zeros((2, 8, 8, 3), jnp.int32), "are int32"),
        ([np.zeros((8, 8, 3), np.uint8)], r"are a list; they must be one array"),
        (None, "are a NoneType"),
        ("digits", "are a str"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(encoder, images, words):
    with pytest.raises(UserError, match=words):
        encoder(images)


def test_images_are_taken(encoder):
    for dtype in (np.uint8, np.float32, jnp.bfloat16):
        assert encoder(jnp.zeros((2, 8, 8, 3), dtype)).shape == (2, encoder.num_features)
