"""A model of a data-parallel step: work and collectives of a device, and the time of both.

python -m benchmarks.scaling_model prints the tables of docs/scaling.md.

FLOPs, parameters and the collectives' sizes are those of the recipes; `tests/test_collectives.py`
holds `collectives` against the compiled program. Rates are the makers' or the scaling book's
(https://jax-ml.github.io/scaling-book), and nothing here was measured on such devices.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import prod

import jax
from ml_collections import ConfigDict

from benchmarks.train_step import forward_flops
from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.encoder import EncoderSpec
from resa_jax.method import create_method, init_networks


BATCHES = (1024, 4096, 16384, 32768)
DEVICES = (8, 64, 256, 1024)
MFU = 0.35  # share of the peak that the networks' matrix products reach
VIEWS, SINKHORN_ROUNDS = 2, 3


@dataclass(frozen=True)
class Device:
    """An accelerator and its links.

    Attributes:
      peak: dense bfloat16, FLOP/s.
      wide: float32 products at full precision (six bfloat16 passes on a TPU; the plain float32 rate
        of a GPU), FLOP/s.
      link: bytes/s that a device sends within a group of `group` devices; `far` beyond it.
      latency: seconds a hop.
    """

    name: str
    peak: float
    wide: float
    link: float
    far: float
    group: int
    latency: float


H100 = Device("H100, 8 a node, NDR InfiniBand", 989e12, 67e12, 450e9, 50e9, 8, 10e-6)
# A v5p slice is one 3-D torus: both directions of three axes.
V5P = Device("TPU v5p", 459e12, 459e12 / 6, 3 * 180e9, 3 * 180e9, 8960, 1e-6)


def trainable(config: ConfigDict) -> list[int]:
    """Numbers of elements of the tensors that get a gradient."""
    _, frozen = create_method(config)
    params, _ = jax.eval_shape(lambda key: init_networks(config, key), jax.random.key(0))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(frozen), strict=True)
    return [prod(leaf.shape) for leaf, kept in pairs if not kept]


def gathered(config: ConfigDict, features: int) -> Counter:
    """All-gathered arrays by number of elements: encodings once, embeddings of each view."""
    sizes = Counter({config.batch_size * features: 1})
    sizes[config.batch_size * config.projector.output_size] += VIEWS
    return sizes


def reduced_beside_gradients(config: ConfigDict) -> Counter:
    """All-reduced arrays by number of elements, of a network without BatchNorm."""
    m, d = config.batch_size, config.projector.output_size
    sizes = Counter({m: 2 * SINKHORN_ROUNDS + 1})  # maximum and sum a round; the diagonal (metric)
    sizes[d * d] += 1  # covariance (metric)
    sizes[d] += 1  # mean embedding (metric)
    sizes[1] += VIEWS  # loss of each pair; entropy rides along
    return sizes


def collectives(config: ConfigDict) -> dict[str, Counter]:
    """Arrays that a step's collectives give out, by number of elements, without BatchNorm.

    Their number and sizes do not depend on the number of devices.
    """
    spec_features = _features(config)
    reduced = Counter(trainable(config)) + reduced_beside_gradients(config)
    return {"all-gather": gathered(config, spec_features), "all-reduce": reduced}


def _features(config):
    _, batch = None, config.batch_size
    del batch
    params, _ = jax.eval_shape(lambda key: init_networks(config, key), jax.random.key(0))
    return params["projector"]["layer0"]["linear"]["kernel"].shape[0]
