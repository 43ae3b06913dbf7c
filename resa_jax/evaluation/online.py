"""Evaluation during pre-training: neighbours, a linear probe, and how features cluster."""

from functools import partial

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from resa_jax.data.sources import Source
from resa_jax.evaluation.clustering import clustering, fixed_split
from resa_jax.evaluation.features import encode_rows
from resa_jax.evaluation.knn import knn_cifar, knn_weighted
from resa_jax.evaluation.linear import linear_cifar
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.models.network import evaluate_layers
from resa_jax.models.spec import EncoderSpec, is_small


class OnlineEvaluation:
    """Scores a train state on labelled sources.

    The linear probe is fitted at evaluation, by the `linear-cifar` protocol with
    `config.eval.linear_epochs`, on the features that k-NN uses too, so that it costs the train step
    nothing and a resumed run gets the same one. Without a test source one image in five is held
    out, by a fixed split.
    """

    def __init__(
        self,
        config: ConfigDict,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        source: Source,
        test_source: Source | None,
    ):
        """
        Args:
          graphdef: structure of the network that is evaluated.
          source: what the features are compared with; it may be unlabelled, then there is no score.
          test_source: what is classified.
        """
        self._config, self._mesh = config, mesh
        self._bank = _subset(source, config.eval.max_images)
        self._test = None if test_source is None else _subset(test_source, config.eval.max_images)
        self._graphdef = graphdef
        self._spec = EncoderSpec.from_config(config)
        self._prepare = Preprocessing.of(self._spec)

    @property
    def labelled(self) -> bool:
        """Whether there are labels to compare with; reads no image."""
        source, _ = self._bank
        return source.is_labelled and len(source.class_names) != 1

    def __call__(self, params: dict, batch_stats: dict) -> dict[str, float]:
        """The scores as `eval/...`: accuracies of the encodings in percent, on request those of a
        linear probe of the projector's layers, and for all layers silhouette, ARI and NMI.

        A source without labels, or all of one class, has none.
        """
        if not self.labelled:
            return {}
        features, labels = self.features(params, batch_stats)
        if len(np.unique(labels)) < 2:
            return {}
        if self._test is None:
            bank, test = fixed_split(len(labels))
            layers = {
                name: (x[bank], labels[bank], x[test], labels[test]) for name, x in features.items()
            }
        else:
            test_features, test_labels = self._extract(params, batch_stats, *self._test)
            layers = {
                name: (x, labels, test_features[name], test_labels) for name, x in features.items()
            }

        sets = layers.pop("encoding")
        if is_small(self._spec.image_size):
            knn = knn_cifar(*sets, k=min(5, len(sets[0])))["top1"]
        else:
            k = min(20, len(sets[0]))
            knn = knn_weighted(*sets, ks=(k,))[k]["top1"]
        epochs = self._config.eval.linear_epochs
        probe = partial(linear_cifar, seed=self._config.seed, epochs=epochs)
        linear = probe(*sets)
        results = {"eval/knn_top1": knn, "eval/linear_top1": linear["top1"]}
        if len(np.unique(labels)) > 5:
            results["eval/linear_top5"] = linear["top5"]
        if self._config.eval.linear_layers:
            for name, layer_sets in layers.items():
                results[f"eval/{name}_linear_top1"] = probe(*layer_sets)["top1"]
        for name, layer in features.items():
            scores = clustering(layer, labels)
            results |= {f"eval/{name}_{score}": value for score, value in scores.items()}
        return results

    def features(self, params: dict, batch_stats: dict):
        """Layers of the training source by name, each [n, d] float32, and its labels [n].

        The labels are None where there are none. Undecodable images have no row.
        """
        return self._extract(params, batch_stats, *self._bank)

    def pixels(self) -> Float[np.ndarray, "n d"]:
        """The raw images of the training source as rows, what an encoder has to beat."""
        source, rows = self._bank
        height, width = self._spec.height_width
        images = []
        for row in rows:
            image, _, index, _ = source.load(row)
            if index == row:  # no stand-in of an undecodable image
                images.append(np.zeros((height, width, image.shape[2]), np.float32))
                image = image[:height, :width]
                images[-1][: image.shape[0], : image.shape[1]] = image
        return np.stack(images).reshape(len(images), -1)

    def _extract(self, params, batch_stats, source, rows: Int[np.ndarray, " n"]):
        forward = partial(
            evaluate_layers, self._graphdef, params, batch_stats, prepare=self._prepare
        )
        batch_size = self._config.eval.batch_size
        features = encode_rows(forward, source, rows, batch_size, self._mesh)
        labels = features.pop("labels")
        del features["indices"]
        return features, labels if source.is_labelled else None


def _subset(source, limit):
    rows = np.arange(len(source))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
    return source, rows
