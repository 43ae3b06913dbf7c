"""A model of a data-parallel step: work and collectives of a device, and the time of both.

python -m benchmarks.scaling_model prints the tables of docs/scaling.md.

FLOPs, parameters and the collectives' sizes are those of the recipes; `tests/test_collectives.py`
holds `collectives` against the compiled program. Rates are the makers' or the scaling book's
(https://jax-ml.github.io/scaling-book), and nothing here was measured on such devices.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

import jax
from ml_collections import ConfigDict

from resa_jax.config import load_config
from resa_jax.models.spec import EncoderSpec
from resa_jax.training.flops import forward_flops
from resa_jax.training.programs import create_step


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


@dataclass(frozen=True)
class Shapes:
    """Shapes of a recipe's networks by path: parameters, batch statistics, and the frozen paths."""

    params: dict[tuple, tuple]
    batch_stats: dict[tuple, tuple]
    frozen: set[tuple]

    @property
    def features(self) -> int:
        """Length of an encoding."""
        return self.params["projector", "linear1", "kernel"][0]


def network_shapes(config: ConfigDict) -> Shapes:
    """Without making any array."""
    networks, init, _ = create_step(config, 1, 1)
    state = jax.eval_shape(init)
    frozen = {path for path, kept in _by_path(networks.frozen).items() if kept}
    shapes = (
        {path: leaf.shape for path, leaf in _by_path(t).items()}
        for t in (state.params, state.batch_stats)
    )
    return Shapes(*shapes, frozen)


def _by_path(tree):
    pairs = jax.tree.leaves_with_path(tree)
    return {tuple(key.key for key in keys): leaf for keys, leaf in pairs}


def collectives(config: ConfigDict, shapes: Shapes) -> dict[str, Counter]:
    """Arrays that a data-parallel step's collectives give out, by number of elements.

    Neither their number nor their sizes depend on the number of devices. XLA may put several arrays
    into one collective.
    """
    m, d = config.batch_size, config.method.output_size
    gathered = Counter({m * shapes.features: 1})  # encodings, for the assignment
    gathered[m * d] += VIEWS  # embeddings, for the loss
    reduced = Counter(
        {
            m: 2 * SINKHORN_ROUNDS + 1,  # maximum and sum over columns; the diagonal (a metric)
            d * d: 1,  # covariance of the embeddings (a metric)
            1: 3,  # loss of each pair of views, entropy
        }
    )
    reduced[d] += 2  # mean and variance of the embeddings (metrics)
    for path, shape in shapes.params.items():
        # A block adds its shortcut to its last BatchNorm: their biases have one gradient.
        if path not in shapes.frozen and path[-2:] != ("downsample_bn", "bias"):
            reduced[prod(shape)] += 1
    for path, (channels,) in shapes.batch_stats.items():
        if path[-1] == "mean":
            # Two moments of each view, forward in each network and backward in one.
            networks = 1 if path[0] == "predictor" else 2
            reduced[channels] += VIEWS * 2 * (networks + 1)
    return {"all-gather": gathered, "all-reduce": reduced}


@dataclass(frozen=True)
class Step:
    """What one device does and moves in a step, FLOPs and bytes.

    Attributes:
      network: products of the networks: two views, forward and twice that backward online, forward
        in the EMA network.
      similarity: the m x m products: one for the assignment, two and their backward for the loss.
      matrices: bytes of one m x m array's rows on this device, float32.
      gathered, reduced: bytes all-gathered and all-reduced, float32.
      sequential: collectives that wait for one another: gathers, Sinkhorn-Knopp, gradients, and one
        of each BatchNorm layer for each view in each network's forward and in the backward pass.
    """

    network: float
    similarity: float
    matrices: float
    gathered: float
    reduced: float
    sequential: int


def step_of(config: ConfigDict, shapes: Shapes, flops: float, devices: int) -> Step:
    """The step of a recipe on so many devices; `flops` are one image's in the encoder."""
    m, d = config.batch_size, config.method.output_size
    moved = {
        kind: 4 * sum(n * c for n, c in sizes.items())
        for kind, sizes in collectives(config, shapes).items()
    }
    norms = sum(
        VIEWS * (2 if path[0] == "predictor" else 3)
        for path in shapes.batch_stats
        if path[-1] == "mean"
    )
    products = 2 * m * m * (shapes.features + 2 * VIEWS * d)
    return Step(
        network=VIEWS * 4 * flops * m / devices,
        similarity=products / devices,
        matrices=4 * m * m / devices,
        gathered=moved["all-gather"],
        reduced=moved["all-reduce"],
        sequential=3 + 2 * SINKHORN_ROUNDS + 2 + norms,
    )


def seconds(step: Step, device: Device, devices: int) -> tuple[float, float, float]:
    """Time of the networks, of the m x m products, and of the collectives without overlap."""
    inside, groups = min(devices, device.group), max(1, devices // device.group)
    # A ring moves (n - 1) / n of the bytes once for a gather and twice for a reduction; between
    # groups each device moves its share of them.
    volume = step.gathered + 2 * step.reduced
    time = volume * (inside - 1) / inside / device.link
    time += volume * (groups - 1) / groups / inside / device.far if groups > 1 else 0
    # Across a torus and back, or to the other nodes and back.
    hops = 2 * round(inside ** (1 / 3)) if device is V5P else 2 * min(groups, 2)
    time += step.sequential * hops * device.latency
    return step.network / (MFU * device.peak), step.similarity / device.wide / 0.5, time


def tables() -> str:
    """The tables of docs/scaling.md, as Markdown."""
    lines = []
    for title, path, overrides in RECIPES:
        config = load_config(path, overrides)
        flops = forward_flops(EncoderSpec.from_config(config))
        shapes = network_shapes(config)
        count = sum(prod(shape) for shape in shapes.params.values()) / 1e6
        lines += [
            f"### {title}",
            "",
            f"{flops / 1e9:.1f} GFLOP for an image's encoding, {count:.1f} M parameters with the "
            f"heads, {shapes.features} features.",
            "",
            "| batch | devices | images a device | TFLOP, networks | GFLOP, m x m "
            "| MB, m x m array | MB gathered | MB reduced "
            "| H100: networks, m x m, collectives, ms | TPU v5p: the same, ms |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for batch in BATCHES:
            config.batch_size = batch
            for devices in DEVICES:
                if batch < devices:
                    continue
                step = step_of(config, shapes, flops, devices)
                times = [
                    ", ".join(_short(1e3 * t) for t in seconds(step, device, devices))
                    for device in (H100, V5P)
                ]
                columns = (
                    *(f"{batch:,}", f"{devices:,}", f"{batch // devices:,}"),
                    *(_short(step.network / 1e12), _short(step.similarity / 1e9)),
                    *(_short(n / 1e6) for n in (step.matrices, step.gathered, step.reduced)),
                    *times,
                )
                lines.append(f"| {' | '.join(columns)} |")
        lines.append("")
    return "\n".join(lines)


def _short(number):
    digits = 0 if number >= 10 else 1 if number >= 1 else 2
    return f"{number:,.{digits}f}" if number >= 0.01 else "< 0.01"


RECIPES = (
    ("ViT-S/16", "configs/imagenet_vits.py", ()),
    ("ViT-B/16", "configs/imagenet_vits.py", ("encoder.name=vit_b16",)),
    ("ResNet-50", "configs/imagenet_resnet50.py", ()),
)


if __name__ == "__main__":
    print(tables())
