"""The mean and standard deviation of a source's channels."""

import numpy as np
from ml_collections import ConfigDict

from resa_jax.data.images import Source


_IMAGES = 10_000  # as many at most, evenly over the source


def with_statistics(config: ConfigDict, source: Source) -> ConfigDict:
    """A recipe with numbers in the place of "auto" in data.mean and data.std."""
    config = config.copy_and_resolve_references()
    if "auto" in (config.data.mean, config.data.std):
        for name, value in zip(("mean", "std"), channel_statistics(source), strict=True):
            if config.data[name] == "auto":
                config.data[name] = value
    return config


def channel_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels in 0..1, to four decimals; std at least 0.001."""
    rows = np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).astype(int)
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for row in rows:
        pixels = source[int(row)].reshape(-1, 3) / 255
        sums = sums + pixels.sum(0)
        squares = squares + (pixels**2).sum(0)
        count += len(pixels)
    mean = sums / count
    std = np.maximum(np.sqrt(squares / count - mean**2), 1e-3)
    return tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) for x in std)
