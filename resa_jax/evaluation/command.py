"""What `python -m resa_jax.evaluate` does once its arguments have been checked."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import resa_jax
from resa_jax.data.sources import Source, open_source
from resa_jax.errors import UserError
from resa_jax.evaluation.features import Preprocessing, TrainedNetwork, extract, load_network
from resa_jax.evaluation.finetune import finetune, only_listed
from resa_jax.evaluation.linear_imagenet import linear_imagenet, resolve_linear
from resa_jax.evaluation.protocols import ON_FEATURES, Clustering, LinearImageNet
from resa_jax.evaluation.scoring import (
    FeatureSet,
    align_labels,
    read_features,
    score,
    split_features,
)
from resa_jax.evaluation.training import open_subsets


# The authors evaluate encoders of both CIFAR recipes with the first of these statistics.
_CIFAR_EVALUATION = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
_CIFAR_MEANS = ((0.4914, 0.4822, 0.4465), (0.5071, 0.4865, 0.4409))


@dataclass(frozen=True)
class Request:
    """The arguments of `python -m resa_jax.evaluate`; see its flags."""

    encoder: Path
    arch: str | None
    network: str
    source: str
    split: str
    test_source: str | None
    test_split: str
    classes: str | None
    seed: int
    all_checkpoints: bool
    cache: Path | None
    image_size: int | None
    resize: int | None
    batch_size: int
    on_bad_image: str

    @property
    def pretraining_batch(self) -> int | None:
        """The batch size of the run that the encoder comes from, where that is on record."""
        workdir = find_workdir(self.encoder)
        return None if workdir is None else _config(workdir)["batch_size"]


def evaluate_features(
    protocols, features: Path, test_features: Path | None, seed: int
) -> Iterator[tuple[dict, None]]:
    """Scores features read from files; yields each protocol's result."""
    train = read_features(features)
    test = None if test_features is None else read_features(test_features)
    for protocol in protocols:
        parts = _parts(protocol, train, test)
        origin = {
            "encoder": None,
            "features": str(features),
            "features_fingerprint": train.fingerprint(),
            "test_features": None if test_features is None else str(test_features),
        }
        yield _result(protocol, origin, seed, parts), None


def evaluate_encoders(protocols, request: Request) -> Iterator[tuple[dict, Path | None]]:
    """Scores an encoder, or each checkpoint of its run, on images.

    Yields:
      Each protocol's result and the file that it belongs in, None outside of a run's folder.
    """
    paths = [request.encoder]
    if request.all_checkpoints:
        checkpoints = [p for p in request.encoder.glob("checkpoints/*") if p.name.isdigit()]
        paths = sorted(checkpoints, key=lambda path: int(path.name))
        if not paths:
            raise UserError(f"--all_checkpoints: {request.encoder} holds no checkpoints.")
    source, test_source = open_labelled_sources(protocols, request)
    for path in paths:
        network = load_network(path, request.arch, request.network)
        workdir = find_workdir(path)
        for protocol in protocols:
            preprocessing = _preprocessing(protocol, network, request)
            results, protocol = _score_images(
                protocol, network, preprocessing, source, test_source, request, workdir
            )
            origin = {
                "encoder": str(path),
                "architecture": dataclasses.asdict(network.spec),
                "network": network.network,
                "step": network.step,
                "weights_fingerprint": network.fingerprint(),
                "source": _source_title(request.source, request.split),
                "test_source": _test_title(protocol, request),
                "classes": request.classes,
                "preprocessing": dataclasses.asdict(preprocessing),
            }
            yield (
                _result(protocol, origin, request.seed, results),
                _default_path(protocol, path, workdir, request),
            )


def open_labelled_sources(protocols, request: Request) -> tuple[Source, Source | None]:
    """The sources of a request.

    Raises:
      UserError: one of them has no labels.
    """
    options = {"classes": request.classes, "on_bad_image": request.on_bad_image}
    source = open_source(request.source, split=request.split, **options)
    test_source = None
    only_clustering = all(isinstance(protocol, Clustering) for protocol in protocols)
    if request.test_source is not None and not only_clustering:
        test_source = open_source(request.test_source, split=request.test_split, **options)
    for name, opened in ((request.source, source), (request.test_source, test_source)):
        if opened is not None and not opened.is_labelled:
            raise UserError(
                f"{name} has no labels, which protocol {protocols[0].name} needs. A folder has "
                "them when its images lie in one folder for each class, an npz file when it holds "
                "an array `labels`."
            )
    return source, test_source


def find_workdir(path: Path) -> Path | None:
    """The folder of the run that an encoder's path belongs to, None for one without a run."""
    if path.is_file():
        return None
    path = path.absolute()
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file():
            return folder
    return None


def _score_images(protocol, network, preprocessing, source, test_source, request, workdir):
    if protocol.name not in ON_FEATURES:
        return _train_on_images(protocol, network, preprocessing, source, test_source, request)
    cache = request.cache
    # All layers of every checkpoint would fill the disk for the sake of one protocol.
    if cache is None and workdir is not None and not request.all_checkpoints:
        cache = workdir / "evaluation" / "features"
    layers = network.layers if isinstance(protocol, Clustering) else ("h",)
    sets = []
    for name, opened in ((request.source, source), (request.test_source, test_source)):
        if opened is None or (sets and isinstance(protocol, Clustering)):
            sets.append(None)
            continue
        arrays = extract(
            network,
            opened,
            name,
            preprocessing,
            layers,
            batch_size=request.batch_size,
            cache=cache,
        )
        values = {layer: arrays[layer] for layer in layers}
        sets.append(FeatureSet(values, np.asarray(arrays["labels"]), opened.class_names))
    return _parts(protocol, *sets), protocol


def _train_on_images(protocol, network, preprocessing, source, test_source, request):
    train, test = open_subsets(source, test_source)
    if isinstance(protocol, LinearImageNet):
        protocol = resolve_linear(protocol, network, request.pretraining_batch)
        results = linear_imagenet(protocol, network, preprocessing, train, test, request.seed)
    else:
        train = only_listed(train, protocol.list_file)
        results = finetune(protocol, network, preprocessing, train, test, request.seed)
    counts = {"num_train": len(train.rows), "num_test": len(test.rows)}
    counts["num_classes"] = len(np.unique(train.labels))
    return counts | {"results": results}, protocol


def _parts(protocol, train: FeatureSet, test: FeatureSet | None):
    """Training and test set of a protocol, the test labels numbered as the training ones."""
    if isinstance(protocol, Clustering):
        return train, None
    if test is None:
        return split_features(train)
    dimensions = train.layers["h"].shape[1], test.layers["h"].shape[1]
    if dimensions[0] != dimensions[1]:
        raise UserError(
            f"The training features have {dimensions[0]} numbers each and the test features "
            f"{dimensions[1]}; both must come from one encoder."
        )
    labels = align_labels(test.labels, test.class_names, train.labels, train.class_names)
    return train, FeatureSet(test.layers, labels, train.class_names)


def _result(protocol, origin: dict, seed: int, parts) -> dict:
    record = {"protocol": protocol.name, "hyperparameters": dataclasses.asdict(protocol)}
    record |= origin | {"seed": seed}
    if isinstance(parts, dict):  # the protocol counted for itself
        results = parts
    else:
        train, test = parts
        results = {
            "num_train": len(train.labels),
            "num_test": None if test is None else len(test.labels),
            "num_classes": len(np.unique(train.labels)),
            "results": score(protocol, train, test, seed),
        }
    versions = {name: version(name) for name in ("jax", "flax", "scikit-learn")}
    versions["resa_jax"] = resa_jax.__version__
    return record | results | {"device": jax.devices()[0].device_kind, "versions": versions}


def _preprocessing(protocol, network: TrainedNetwork, request: Request) -> Preprocessing:
    preprocessing = Preprocessing.of(network.spec, protocol.interpolation)
    if request.image_size is not None:
        side = preprocessing.resize * request.image_size / preprocessing.size
        preprocessing = dataclasses.replace(
            preprocessing, size=request.image_size, resize=round(side)
        )
    if request.resize is not None:
        preprocessing = dataclasses.replace(preprocessing, resize=request.resize)
    if preprocessing.resize < preprocessing.size:
        raise UserError(
            f"--resize={preprocessing.resize} is smaller than the {preprocessing.size} pixels that "
            "are cropped from it."
        )
    authors = getattr(protocol, "normalization", "matched") == "authors"
    if authors and preprocessing.mean in _CIFAR_MEANS:
        mean, std = _CIFAR_EVALUATION
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std)
    return preprocessing


def _source_title(name: str, split: str) -> str:
    return f"{name}, split {split}" if name.startswith("tfds:") else name


def _test_title(protocol, request: Request) -> str | None:
    if isinstance(protocol, Clustering):
        return None
    if request.test_source is None:
        return f"one in five of {request.source}, fixed split"
    return _source_title(request.test_source, request.test_split)


def _default_path(protocol, path: Path, workdir: Path | None, request: Request) -> Path | None:
    if workdir is None:
        return None
    name = protocol.name
    if path.parent.name == "checkpoints":
        name += f"-step{path.name}"
    if request.network != "ema":
        name += f"-{request.network}"
    if _config(workdir)["data"]["source"] != request.source:
        name += "-" + re.sub(r"\W+", "-", request.source).strip("-")[-60:]
    return workdir / "evaluation" / f"{name}.json"


def _config(workdir: Path) -> dict:
    return json.loads((workdir / "config.json").read_text())
