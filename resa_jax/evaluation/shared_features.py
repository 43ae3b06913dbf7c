"""The features of one encoder, each computed once for all protocols that read it."""

from pathlib import Path

import numpy as np

from resa_jax.data.sources import Source
from resa_jax.encoder import Encoder
from resa_jax.evaluation.feature_sets import FeatureSet, train_and_test
from resa_jax.evaluation.features import extract
from resa_jax.evaluation.preprocessing import Preprocessing


class SharedFeatures:
    """Training and test sets for several protocols; what is equal for some is computed once."""

    def __init__(
        self,
        encoder: Encoder,
        train: tuple[Source, str],
        test: tuple[Source, str] | None,
        protocols: list[tuple],
        *,
        batch_size: int,
        cache: Path | None,
    ):
        """
        Args:
          train, test: a source and the string that names it; without a test source some images of
            the other are held out.
          protocols: all that will ask, each with its preprocessing.
          batch_size: images at a time.
          cache: see `extract`.
        """
        self._encoder, self._cache = encoder, cache
        self._sources = [train] if test is None else [train, test]
        # Batches of one size and the same layers of both, which then share a program.
        self._batch_size = min(batch_size, max(len(source) for source, _ in self._sources))
        self._layers: dict[Preprocessing, set[str]] = {}
        self._sets: dict[tuple[Preprocessing, int], FeatureSet] = {}
        for protocol, preprocessing in protocols:
            if protocol.on_features:
                wanted = protocol.layers or encoder.layer_names
                self._layers.setdefault(preprocessing, set()).update(wanted)

    def __call__(
        self, protocol, preprocessing: Preprocessing
    ) -> tuple[FeatureSet, FeatureSet | None]:
        """Training and test set of a protocol that reads features."""
        wanted = protocol.layers or self._encoder.layer_names
        train = self._set(preprocessing, 0).only(wanted)
        if not protocol.needs_test:
            return train, None
        test = self._set(preprocessing, 1).only(wanted) if len(self._sources) > 1 else None
        return train_and_test(train, test)

    def _set(self, preprocessing, number):
        key = preprocessing, number
        if key not in self._sets:
            source, title = self._sources[number]
            names = self._encoder.layer_names
            layers = tuple(name for name in names if name in self._layers[preprocessing])
            arrays = extract(
                self._encoder,
                source,
                title,
                preprocessing,
                layers,
                batch_size=self._batch_size,
                cache=self._cache,
            )
            values = {name: arrays[name] for name in layers}
            labels = np.asarray(arrays["labels"])
            self._sets[key] = FeatureSet(values, labels, source.class_names)
        return self._sets[key]
