"""The mean and standard deviation of a source's channels."""

import numpy as np
from ml_collections import ConfigDict

from resa_jax.data.decoding import Decoding
from resa_jax.data.images import Source


_IMAGES = 10_000  # as many at most, evenly over the source


def with_statistics(config: ConfigDict, source: Source) -> ConfigDict:
    """A recipe with numbers in the place of "auto" in data.mean and data.std."""
    config = config.copy_and_resolve_references()
    if "auto" in (config.data.mean, config.data.std):
        measured = channel_statistics(source, Decoding.of(config.data).white)
        for name, value in zip(("mean", "std"), measured, strict=True):
            if config.data[name] == "auto":
                config.data[name] = value
    return config


def channel_statistics(
    source: Source, white: int = 255
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels in 0..1, to four decimals; std at least 0.001."""
    rows = np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).astype(int)
    count, sums, squares = 0, *np.zeros((2, source.canvas[2]))
    for row in rows:
        pixels = source[int(row)].reshape(-1, source.canvas[2]) / white
        sums = sums + pixels.sum(0)
        squares = squares + (pixels**2).sum(0)
        count += len(pixels)
    mean = sums / count
    std = np.maximum(np.sqrt(squares / count - mean**2), 1e-3)
    return tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) for x in std)
