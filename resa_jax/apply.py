"""A trained encoder applied to images: what `embed` and `evaluate` do, from Python."""

import os
from typing import Any

import numpy as np

from resa_jax.data.held import in_memory
from resa_jax.data.sources import open_source
from resa_jax.encoder import Encoder, check_images, load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.command import Request, open_labelled_sources, score_encoder
from resa_jax.evaluation.features import extract
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.protocols import create_protocol


def encode(
    encoder: Encoder | str | os.PathLike,
    source: str | np.ndarray,
    *,
    layers: tuple[str, ...] = ("encoding",),
    split: str = "train",
    batch_size: int = 256,
    on_bad_image: str = "error",
) -> dict[str, np.ndarray]:
    """Encodings of any number of images, over all devices.

    Each image is resized and cropped as evaluations do it, and normalised by the encoder's own mean
    and standard deviation.

    Args:
      encoder: what `load_encoder` returns, or a path that it reads.
      source: `digits`, `folder:PATH`, `npz:FILE` or `tfds:NAME`; or images [n, h, w, 3], uint8.
      layers: "encoding", and "p0", ..., "embedding" of an encoder loaded with its projector.
      split: of a `tfds:` source.
      batch_size: images at a time.
      on_bad_image: "error", or "skip" to leave undecodable images out.

    Returns:
      Each layer as float32 [n, d]; `labels`, int32 [n], -1 where there is none; and `indices`,
      int32 [n], positions in the source.

    Raises:
      UserError: for a source or layer that is not there, or images of another shape or dtype.
    """
    loaded = _load(encoder, projector=layers != ("encoding",))
    if isinstance(source, str):
        name, opened = (
            source,
            open_source(source, loaded.spec.decoding, split=split, on_bad_image=on_bad_image),
        )
    else:
        how = loaded.spec.decoding
        check_images(source, how)
        if source.dtype != how.dtype:
            raise UserError(
                f"The images are {source.dtype}; `encode` takes {how.dtype} from 0 to {how.white}."
            )
        name, opened = "images", in_memory(list(source), None, ())
    preprocessing = Preprocessing.of(loaded.spec)
    size = min(batch_size, len(opened))
    return extract(loaded, opened, name, preprocessing, layers, batch_size=size)


def score(
    encoder: Encoder | str | os.PathLike,
    protocol: str,
    source: str,
    test_source: str | None = None,
    *,
    split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    batch_size: int = 256,
    **fields: Any,
) -> dict[str, Any]:
    """Scores an encoder by one of the protocols of the paper.

    Args:
      encoder: as for `encode`.
      protocol: a name, as "knn-cifar"; `resa_jax/evaluation/protocols.py` has them all.
      source: images with labels to compare with or to train on, as for `encode`.
      test_source: images to classify; None holds out one in five, or takes the `test_split` of a
        `tfds:` source.
      split, test_split: of `tfds:` sources.
      seed: of classifiers and k-means.
      batch_size: images at a time through the encoder.
      **fields: of the protocol, as `epochs=50`.

    Returns:
      The record that `python -m resa_jax.evaluate` writes: `results` from rows to scores,
      accuracies in percent, and all that they depend on.

    Raises:
      UserError: for an unknown protocol or field, or a source without labels.
    """
    chosen = create_protocol(protocol, **fields)
    loaded = _load(encoder, projector=True)
    if test_source is None and source.startswith("tfds:"):
        test_source = source
    request = Request(
        encoder=loaded.path,
        network=loaded.network,
        source=source,
        split=split,
        test_source=test_source,
        test_split=test_split,
        seed=seed,
        batch_size=batch_size,
    )
    sources = open_labelled_sources([chosen], request, loaded.spec)
    ((record, _),) = score_encoder(loaded, loaded.path, [chosen], request, *sources)
    return record


def _load(encoder: Encoder | str | os.PathLike, *, projector: bool) -> Encoder:
    return encoder if isinstance(encoder, Encoder) else load_encoder(encoder, projector=projector)
