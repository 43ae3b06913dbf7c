"""What the protocols that train on augmented images share: images, views, classifiers, SGD."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt

from resa_jax.data.augment import augment
from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import Source
from resa_jax.data.view import View
from resa_jax.evaluation.clustering import fixed_split
from resa_jax.evaluation.feature_sets import align_labels
from resa_jax.evaluation.features import encode_rows
from resa_jax.evaluation.knn import topk_accuracy
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.sharding import batch_sharding, create_mesh, replicated, to_devices


_LOG = logging.getLogger("resa_jax")


@dataclass(frozen=True)
class Subset:
    """Some images of a source: their positions and their labels, numbered as the training ones."""

    source: Source
    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    def batches(
        self, batch_size: int, order: Int[np.ndarray, " n"], *, filled: bool
    ) -> Iterator[tuple[Array, ...]]:
        """Images, sizes and labels on the devices, in an order of the subset.

        Args:
          filled: the last batch is as large as the others, and rows without an image of their own
            have the label -1; otherwise they are left out.
        """
        mesh = create_mesh()
        batch_size = -(-batch_size // mesh.size) * mesh.size
        part = batch_size // jax.process_count()
        with evaluation_batches(
            self.source,
            rows=self.rows[order],
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ) as stream:
            for number, batch in enumerate(stream):
                first = number * batch_size + jax.process_index() * part
                chosen = order[first : first + part]
                asked = np.full(part, -1)
                asked[: len(chosen)] = self.rows[chosen]
                labels = np.full(part, -1, np.int32)
                labels[: len(chosen)] = self.labels[chosen]
                labels[batch["indices"] != asked] = -1  # stand-ins of undecodable images
                arrays = {"images": batch["images"], "sizes": batch["sizes"], "labels": labels}
                if filled:
                    yield to_devices(arrays, mesh, tuple(arrays))
                elif kept := _without_filling(arrays, mesh):
                    yield kept


def _without_filling(arrays: dict[str, np.ndarray], mesh: Mesh) -> tuple[Array, ...]:
    """The rows with a label, of all processes, on the devices; nothing where there is none."""
    everyone = multihost_utils.process_allgather(arrays["labels"], tiled=True)
    if (everyone >= 0).all():
        return to_devices(arrays, mesh, tuple(arrays))
    whole = multihost_utils.process_allgather(arrays, tiled=True)
    kept = [whole[name][everyone >= 0] for name in arrays]
    if not len(kept[0]):
        return ()
    place = batch_sharding(mesh) if len(kept[0]) % mesh.size == 0 else replicated(mesh)
    return tuple(jax.make_array_from_callback(a.shape, place, a.__getitem__) for a in kept)


@dataclass(frozen=True)
class TrainingView:
    """torchvision's RandomResizedCrop and flip, as the authors train classifiers with.

    Called with a key, images and sizes it gives normalised views, [n, size, size, c].
    """

    preprocessing: Preprocessing
    crop_scale: tuple[float, float]

    def __call__(
        self, key: Array, images: UInt[Array, "n a b c"], sizes: Int[Array, "n 3"]
    ) -> Float[Array, "n s s c"]:
        view = View(size=self.preprocessing.size, crop_scale=self.crop_scale)
        seen = self.preprocessing
        return augment(key, images, sizes, (view,), seen.mean, seen.std, seen.white)[0]


def open_subsets(source: Source, test_source: Source | None) -> tuple[Subset, Subset]:
    """All images of labelled sources, to train and to test on.

    Args:
      test_source: None holds out one image in five of the source, by `fixed_split`.

    Raises:
      UserError: the test source has a class that the training source lacks.
    """
    labels = np.asarray(source.labels)
    if test_source is None:
        rows, held_out = fixed_split(len(source))
        return Subset(source, rows, labels[rows]), Subset(source, held_out, labels[held_out])
    test_labels = align_labels(
        np.asarray(test_source.labels), test_source.class_names, labels, source.class_names
    )
    test = Subset(test_source, np.arange(len(test_source)), test_labels)
    return Subset(source, np.arange(len(source)), labels), test


def training_batches(
    subset: Subset, batch_size: int, seed: int, epoch: int, *, filled: bool
) -> Iterator[tuple[Array, ...]]:
    """An epoch's batches in its own order, as (key of the augmentation, images, sizes, labels)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(subset.rows))
    for number, batch in enumerate(subset.batches(batch_size, order, filled=filled)):
        yield jax.random.fold_in(key, number), *batch


def over_images(
    forward: Callable, subset: Subset, batch_size: int, mesh: Mesh
) -> tuple[dict[str, np.ndarray], Int[np.ndarray, " n"]]:
    """What `encode_rows` gives for a subset, and the labels of its decodable images."""
    outputs = encode_rows(forward, subset.source, subset.rows, batch_size, mesh)
    return outputs, subset.labels[np.isin(subset.rows, outputs["indices"])]


def initial_heads(
    key: Array, number: int, num_features: int, num_classes: int
) -> dict[str, Float[Array, "..."]]:
    """Equal linear classifiers, side by side: kernels [number, d, c] from N(0, 0.01), biases 0."""
    kernel = 0.01 * jax.random.normal(key, (num_features, num_classes))
    return {
        "kernel": jnp.broadcast_to(kernel, (number, *kernel.shape)).copy(),
        "bias": jnp.zeros((number, num_classes)),
    }


def heads_loss(
    heads: dict[str, Float[Array, "..."]], features: Float[Array, "n d"], labels: Int[Array, " n"]
) -> Float[Array, ""]:
    """Sum over the heads of their mean cross-entropy; rows of label -1 do not count.

    The heads share no parameter, so that each gets the gradient of its own loss.
    """
    weights = (labels >= 0).astype(jnp.float32)
    logits = jnp.einsum(
        "nd,rdc->rnc", features, heads["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits + heads["bias"][:, None], jnp.broadcast_to(labels.clip(0), logits.shape[:2])
    )
    return (losses * weights).sum() / jnp.maximum(weights.sum(), 1)


def sgd(rate: float | Array, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's SGD: trace = momentum trace + gradient + decay; params -= rate trace."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum))


def logits_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies in percent; equal logits in the order of their labels."""
    return topk_accuracy(np.argsort(-logits, axis=1, kind="stable")[:, :5], labels)


def last_and_best(curve: list[dict[str, float]]) -> dict[str, dict]:
    """The accuracies after the last epoch, and those of the epoch (from 1) of the best top-1."""
    best = max(range(len(curve)), key=lambda epoch: curve[epoch]["top1"])
    return {"last": curve[-1], "best": curve[best] | {"epoch": best + 1}}


def report_epoch(epoch: int, epochs: int, top1: float) -> None:
    """Says how far the training is."""
    _LOG.info("epoch %d/%d: top-1 %.2f %%", epoch + 1, epochs, top1)
