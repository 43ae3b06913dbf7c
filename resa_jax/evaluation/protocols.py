"""The evaluation protocols, each a frozen description with every number that decides its result.

A protocol also says what it needs and computes its result:

- `interpolation`, with which images are resized for it;
- `on_features`: whether it reads features, else it trains on images;
- `layers`: the features that it reads, None for all that there are;
- `needs_test`: whether it scores a test set;
- `score(train, test, seed)` of two `FeatureSet`s, or `score(encoder, preprocessing, train, test,
  seed)` of two `Subset`s, gives rows of scores: accuracies in percent, others as fractions;
- `resolve(encoder, train, pretraining_batch)` of those that train on images comes first: it gives
  the protocol with nothing left open, and the images to train on.

Imports nothing heavy, so that a mistake on the command line is answered at once.
"""

import dataclasses
import difflib
import logging
from dataclasses import dataclass
from typing import ClassVar

from resa_jax.errors import UserError


_LOG = logging.getLogger("resa_jax")
NORMALIZATIONS = ("authors", "matched")


@dataclass(frozen=True)
class KnnWeighted:
    """Cosine k-NN with votes exp(s / temperature): resa, eval_knn.py; Tables 3 and 6."""

    name: ClassVar[str] = "knn-weighted"
    interpolation: ClassVar[str] = "bicubic"
    on_features: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...] | None] = ("encoding",)
    needs_test: ClassVar[bool] = True
    ks: tuple[int, ...] = (5, 10, 20)
    temperature: float = 0.07

    def score(self, train, test, seed: int) -> dict[str, dict]:
        """A row for each k."""
        from resa_jax.evaluation.knn import knn_weighted

        sets = *train.labelled_encodings, *test.labelled_encodings
        scores = knn_weighted(*sets, ks=self.ks, temperature=self.temperature)
        return {f"k{k}": accuracies for k, accuracies in scores.items()}


@dataclass(frozen=True)
class KnnCifar:
    """Euclidean k-NN on raw features, majority vote: resa_cifar, eval/evaluate.py; Table 1.

    normalization: "authors" gives images CIFAR-10's statistics where the encoder was trained with
    those of CIFAR-10 or CIFAR-100; "matched" always takes the encoder's own.
    """

    name: ClassVar[str] = "knn-cifar"
    interpolation: ClassVar[str] = "bicubic"
    on_features: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...] | None] = ("encoding",)
    needs_test: ClassVar[bool] = True
    k: int = 5
    normalization: str = "authors"

    def score(self, train, test, seed: int) -> dict[str, dict]:
        """One row."""
        from resa_jax.evaluation.knn import knn_cifar

        sets = *train.labelled_encodings, *test.labelled_encodings
        return {f"k{self.k}": knn_cifar(*sets, k=self.k)}


@dataclass(frozen=True)
class LinearCifar:
    """Adam on unaugmented features: resa_cifar, eval/evaluate.py; Table 1.

    first_rate, last_rate: the learning rate falls geometrically from epoch to epoch.
    """

    name: ClassVar[str] = "linear-cifar"
    interpolation: ClassVar[str] = "bicubic"
    on_features: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...] | None] = ("encoding",)
    needs_test: ClassVar[bool] = True
    epochs: int = 500
    batch_size: int = 1000
    first_rate: float = 1e-2
    last_rate: float = 1e-6
    weight_decay: float = 5e-6
    normalization: str = "authors"

    def score(self, train, test, seed: int) -> dict[str, dict]:
        """One row."""
        from resa_jax.evaluation.linear import linear_cifar

        fields = dataclasses.asdict(self)
        del fields["normalization"]
        sets = *train.labelled_encodings, *test.labelled_encodings
        return {"linear": linear_cifar(*sets, seed=seed, **fields)}


@dataclass(frozen=True)
class Coarse:
    """KnnCifar and LinearCifar with CIFAR-100's 20 superclasses as labels: Table 7."""

    name: ClassVar[str] = "coarse"
    interpolation: ClassVar[str] = "bicubic"
    on_features: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...] | None] = ("encoding",)
    needs_test: ClassVar[bool] = True
    k: int = 5
    epochs: int = 500
    batch_size: int = 1000
    first_rate: float = 1e-2
    last_rate: float = 1e-6
    weight_decay: float = 5e-6
    normalization: str = "authors"

    def score(self, train, test, seed: int) -> dict[str, dict]:
        """A row for the neighbours and one for the classifier."""
        from resa_jax.evaluation.superclasses import coarse_labels

        train, test = (
            dataclasses.replace(part, labels=coarse_labels(part.labels, part.class_names))
            for part in (train, test)
        )
        fields = dataclasses.asdict(self)
        neighbours = KnnCifar(fields.pop("k"), self.normalization)
        sets = train, test, seed
        return neighbours.score(*sets) | LinearCifar(**fields).score(*sets)


@dataclass(frozen=True)
class Clustering:
    """Silhouette, k-means ARI and NMI, matched accuracy of the layers: Figures 3, 4 and 9."""

    name: ClassVar[str] = "clustering"
    interpolation: ClassVar[str] = "bicubic"
    on_features: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...] | None] = None
    needs_test: ClassVar[bool] = False
    num_init: int = 10  # of k-means, which has as many clusters as there are classes

    def score(self, train, test, seed: int) -> dict[str, dict]:
        """A row for each layer."""
        from resa_jax.evaluation.clustering import clustering

        return {
            name: clustering(values, train.labels, seed=seed, num_init=self.num_init)
            for name, values in train.layers.items()
        }


@dataclass(frozen=True)
class LinearImageNet:
    """SGD on augmented views through the frozen encoder: resa, eval_linear.py; Table 9.

    rates: learning rates per 256 images, trained side by side on the same views; empty: the one of
    Table 9 for the architecture. blocks: last blocks of a ViT that are read, 0: 4 for S, 1 with the
    mean of the patches for B and L.
    """

    name: ClassVar[str] = "linear-imagenet"
    interpolation: ClassVar[str] = "bilinear"
    on_features: ClassVar[bool] = False
    layers: ClassVar[tuple[str, ...] | None] = ()
    needs_test: ClassVar[bool] = True
    epochs: int = 100
    batch_size: int = 256
    rates: tuple[float, ...] = ()
    milestones: tuple[int, ...] = (60, 80)  # epochs after which the rate falls
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    blocks: int = 0

    def resolve(self, encoder, train, pretraining_batch: int | None) -> tuple:
        """The protocol with the encoder's rate and blocks (Table 9) filled in, and all images.

        Args:
          pretraining_batch: the global batch of the encoder's run, None where it is not on record.
        """
        rate, blocks = encoder.spec.create().linear_settings(pretraining_batch)
        blocks = blocks and (self.blocks or blocks)
        return dataclasses.replace(self, rates=self.rates or (rate,), blocks=blocks), train

    def score(self, encoder, preprocessing, train, test, seed: int) -> dict[str, dict]:
        """A row for each learning rate."""
        from resa_jax.evaluation.linear_imagenet import linear_imagenet

        return linear_imagenet(self, encoder, preprocessing, train, test, seed)


@dataclass(frozen=True)
class Finetune1:
    """Encoder and head on 1 % of ImageNet's labels: resa, eval_linear.py; Table 10.

    list_file: the names of the images to train on, one a line: SimCLR's 1percent.txt is the
    paper's. Without it, 1 % of each class's images, by a fixed draw.
    Learning rates are per 256 images and fall to 0 by a cosine over the epochs.
    """

    name: ClassVar[str] = "finetune-1"
    interpolation: ClassVar[str] = "bilinear"
    on_features: ClassVar[bool] = False
    layers: ClassVar[tuple[str, ...] | None] = ()
    needs_test: ClassVar[bool] = True
    share: ClassVar[float] = 0.01
    list_file: str = ""
    epochs: int = 20
    batch_size: int = 256
    encoder_rate: float = 2e-4
    head_rate: float = 40.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def resolve(self, encoder, train, pretraining_batch: int | None) -> tuple:
        """The protocol, and the images that it trains on."""
        from resa_jax.evaluation.finetune import balanced_share, only_listed

        if self.list_file:
            return self, only_listed(train, self.list_file)
        chosen = balanced_share(train, self.share)
        _LOG.info(
            "%s without --list_file: %d images, %g %% of each class's, one at least.",
            self.name,
            len(chosen.labels),
            100 * self.share,
        )
        return self, chosen

    def score(self, encoder, preprocessing, train, test, seed: int) -> dict[str, dict]:
        """One row."""
        from resa_jax.evaluation.finetune import finetune

        return finetune(self, encoder, preprocessing, train, test, seed)


@dataclass(frozen=True)
class Finetune10(Finetune1):
    """The same with 10 % of the labels (SimCLR's 10percent.txt)."""

    name: ClassVar[str] = "finetune-10"
    share: ClassVar[float] = 0.1


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        *(KnnWeighted, KnnCifar, LinearCifar, Coarse, Clustering),
        *(LinearImageNet, Finetune1, Finetune10),
    )
}
ON_FEATURES = tuple(name for name, protocol in PROTOCOLS.items() if protocol.on_features)


def create_protocol(name: str, **fields):
    """The protocol of that name with some fields changed.

    Raises:
      UserError: an unknown name, a field that the protocol does not have, or a value out of range.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0)[0]
        raise UserError(
            f"There is no protocol {name!r}; the nearest is {near!r}. "
            f"Known are: {', '.join(PROTOCOLS)}."
        )
    known = [field.name for field in dataclasses.fields(PROTOCOLS[name])]
    for field, value in fields.items():
        if field not in known:
            raise UserError(f"Protocol {name} has no {field} to set; it has: {', '.join(known)}.")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(not isinstance(number, str) and number <= 0 for number in numbers):
            raise UserError(f"{field}={value} of protocol {name} must be positive.")
        if field == "normalization" and value not in NORMALIZATIONS:
            raise UserError(f"normalization={value} must be one of {', '.join(NORMALIZATIONS)}.")
    return PROTOCOLS[name](**fields)
