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
        # One size for both, which then share a program, and no larger than they need.
        self._batch_size = min(batch_size, max(len(source) for source, _ in self._sources))
        self._layers: dict[tuple[Preprocessing, int], set[str]] = {}
        self._sets: dict[tuple[Preprocessing, int], FeatureSet] = {}
        for protocol, preprocessing in protocols:
            for key in self._keys(protocol, preprocessing):
                wanted = protocol.layers or encoder.layer_names
                self._layers.setdefault(key, set()).update(wanted)

    def __call__(
        self, protocol, preprocessing: Preprocessing
    ) -> tuple[FeatureSet, FeatureSet | None]:
        """Training and test set of a protocol that reads features."""
        sets = [self._set(key) for key in self._keys(protocol, preprocessing)]
        wanted = protocol.layers or self._encoder.layer_names
        train, test = ([part.only(wanted) for part in sets] + [None])[:2]
        return train_and_test(train, test) if protocol.needs_test else (train, None)

    def _keys(self, protocol, preprocessing):
        """The sets that a protocol reads, by preprocessing and number of the source."""
        if not protocol.on_features:
            return []
        sources = range(len(self._sources) if protocol.needs_test else 1)
        return [(preprocessing, number) for number in sources]

    def _set(self, key):
        if key not in self._sets:
            preprocessing, number = key
            source, title = self._sources[number]
            names = self._encoder.layer_names
            arrays = extract(
                self._encoder,
                source,
                title,
                preprocessing,
                tuple(name for name in names if name in self._layers[key]),
                batch_size=self._batch_size,
                cache=self._cache,
            )
            layers = {name: arrays[name] for name in names if name in arrays}
            labels = np.asarray(arrays["labels"])
            self._sets[key] = FeatureSet(layers, labels, source.class_names)
        return self._sets[key]
