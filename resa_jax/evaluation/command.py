"""What `python -m resa_jax.evaluate` does once its arguments have been checked."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import resa_jax
from resa_jax.config import read_config_file
from resa_jax.data.sources import Source, open_source
from resa_jax.encoder import Encoder, load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.feature_sets import read_features, train_and_test
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.shared_features import SharedFeatures
from resa_jax.evaluation.training import open_subsets
from resa_jax.image_size import ImageSize, height_width, size_in_words
from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, absolute, is_remote
from resa_jax.processes.agreement import check_alike
from resa_jax.workdir import checkpoint_paths


# The authors evaluate encoders of both CIFAR recipes with the first of these statistics.
_CIFAR_EVALUATION = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
_CIFAR_MEANS = ((0.4914, 0.4822, 0.4465), (0.5071, 0.4865, 0.4409))


@dataclass(frozen=True)
class Request:
    """The arguments of `python -m resa_jax.evaluate`; see its flags."""

    encoder: AnyPath
    source: str
    arch: str | None = None
    network: str = "ema"
    split: str = "train"
    test_source: str | None = None
    test_split: str = "test"
    classes: str | None = None
    long_tail: float | None = None
    seed: int = 0
    all_checkpoints: bool = False
    cache: AnyPath | None = None
    image_size: ImageSize | None = None
    resize: int | None = None
    batch_size: int = 256
    on_bad_image: str = "error"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def statistics(self) -> dict[str, Any]:
        """How images are normalised, in the place of the encoder's own."""
        return {"mean": self.mean, "std": self.std}

    @property
    def pretraining_batch(self) -> int | None:
        """The batch size of the run that the encoder comes from, where that is on record."""
        workdir = find_workdir(self.encoder)
        return None if workdir is None else _config(workdir).batch_size


def evaluate_features(
    protocols, features: AnyPath, test_features: AnyPath | None, seed: int
) -> Iterator[tuple[dict, None]]:
    """Scores features read from files; yields each protocol's result."""
    train = read_features(features)
    test = None if test_features is None else read_features(test_features)
    for protocol in protocols:
        parts: tuple[Any, Any] = (train, None)
        if protocol.needs_test:
            parts = train_and_test(train, test)
        scores = protocol.score(*parts, seed)
        origin = {
            "encoder": None,
            "features": str(features),
            "features_fingerprint": train.fingerprint(),
            "test_features": None if test_features is None else str(test_features),
        }
        yield _result(protocol, origin, seed, *parts, scores), None


def evaluate_encoders(protocols, request: Request) -> Iterator[tuple[dict, AnyPath | None]]:
    """Scores an encoder, or each checkpoint of its run, on images.

    Yields:
      Each protocol's result and the file that it belongs in, None outside of a run's folder.
    """
    paths = [request.encoder]
    if request.all_checkpoints:
        paths = checkpoint_paths(request.encoder)
        if not paths:
            raise UserError(f"--all_checkpoints: {request.encoder} holds no checkpoints.")
    spec = load_encoder(paths[0], request.arch, request.network, **request.statistics).spec
    source, test_source = open_labelled_sources(protocols, request, spec)
    sources = {"--source": source} | ({} if test_source is None else {"--test_source": test_source})
    facts = {f"--{name}": str(value) for name, value in dataclasses.asdict(request).items()}
    check_alike(facts | {"--protocol": str(protocols)}, sources)
    for path in paths:
        encoder = load_encoder(
            path, request.arch, request.network, projector=True, **request.statistics
        )
        check_alike({f"the hash of {path}": encoder.fingerprint()}, {})
        yield from score_encoder(encoder, path, protocols, request, source, test_source)


def score_encoder(
    encoder: Encoder,
    path: AnyPath,
    protocols,
    request: Request,
    source: Source,
    test_source: Source | None,
) -> Iterator[tuple[dict, AnyPath | None]]:
    """Scores one encoder, which `path` led to, as `evaluate_encoders` does."""
    workdir = find_workdir(path)
    test_set = None
    if test_source is not None and request.test_source is not None:
        test_set = test_source, _source_title(request.test_source, request.test_split)
    planned = [(each, _preprocessing(each, encoder, request)) for each in protocols]
    features = SharedFeatures(
        encoder,
        (source, _source_title(request.source, request.split)),
        test_set,
        planned,
        batch_size=request.batch_size,
        cache=_cache(request, workdir),
    )
    for protocol, preprocessing in planned:
        origin = {
            "encoder": str(path),
            "architecture": dataclasses.asdict(encoder.spec),
            "network": encoder.network,
            "step": encoder.step,
            "weights_fingerprint": encoder.fingerprint(),
            "source": _source_title(request.source, request.split),
            "test_source": _test_title(protocol, request),
            "classes": request.classes,
            "long_tail": request.long_tail,
            "preprocessing": dataclasses.asdict(preprocessing),
        }
        parts: tuple[Any, Any]
        if protocol.on_features:
            parts = features(protocol, preprocessing)
            scores = protocol.score(*parts, request.seed)
        else:
            train, test = open_subsets(source, test_source)
            protocol, train = protocol.resolve(encoder, train, request.pretraining_batch)
            parts = train, test
            scores = protocol.score(encoder, preprocessing, *parts, request.seed)
        yield (
            _result(protocol, origin, request.seed, parts[0], parts[1], scores),
            _default_path(protocol, path, workdir, request),
        )


def open_labelled_sources(
    protocols, request: Request, spec: EncoderSpec
) -> tuple[Source, Source | None]:
    """The sources of a request, with images as the encoder takes them.

    Raises:
      UserError: one of them has no labels.
    """
    options: dict[str, Any] = {"classes": request.classes, "on_bad_image": request.on_bad_image}
    source = open_source(
        request.source,
        spec.decoding,
        split=request.split,
        long_tail=request.long_tail,
        **options,
    )
    test_source = None
    if request.test_source is not None and any(protocol.needs_test for protocol in protocols):
        test_source = open_source(
            request.test_source, spec.decoding, split=request.test_split, **options
        )
    for name, opened in ((request.source, source), (request.test_source, test_source)):
        if opened is not None and not opened.is_labelled:
            raise UserError(
                f"{name} has no labels, which protocol {protocols[0].name} needs. A folder has "
                "them when its images lie in one folder for each class, an npz file when it holds "
                "an array `labels`."
            )
    return source, test_source


def find_workdir(path: AnyPath) -> AnyPath | None:
    """The folder of the run that an encoder's path belongs to, None for one without a run."""
    if path.is_file():
        return None
    path = absolute(path)
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file():
            return folder
    return None


def _cache(request: Request, workdir: AnyPath | None) -> AnyPath | None:
    # All layers of every checkpoint would fill the disk for the sake of one protocol.
    # A bucket's are not mapped into memory.
    if request.cache is None and workdir is not None and not request.all_checkpoints:
        return None if is_remote(workdir) else workdir / "evaluation" / "features"
    return request.cache


def _result(protocol, origin: dict, seed: int, train, test, scores: dict) -> dict:
    """The record of a protocol's scores; train and test: what has the labels it looked at."""
    versions = {name: version(name) for name in ("jax", "flax", "scikit-learn")}
    versions["resa_jax"] = resa_jax.__version__
    return {
        "protocol": protocol.name,
        "hyperparameters": dataclasses.asdict(protocol),
        **origin,
        "seed": seed,
        "num_train": len(train.labels),
        "num_test": None if test is None else len(test.labels),
        "num_classes": len(np.unique(train.labels)),
        "results": scores,
        "device": jax.devices()[0].device_kind,
        "versions": versions,
    }


def _preprocessing(protocol, encoder: Encoder, request: Request) -> Preprocessing:
    preprocessing = Preprocessing.of(encoder.spec, protocol.interpolation)
    if request.image_size is not None:
        old, new = (min(height_width(x)) for x in (preprocessing.size, request.image_size))
        side = preprocessing.resize * new / old
        preprocessing = dataclasses.replace(
            preprocessing, size=request.image_size, resize=round(side)
        )
    if request.resize is not None:
        preprocessing = dataclasses.replace(preprocessing, resize=request.resize)
    if preprocessing.resize < min(height_width(preprocessing.size)):
        raise UserError(
            f"--resize={preprocessing.resize} is too small for the "
            f"{size_in_words(preprocessing.size)} that are cropped from it."
        )
    authors = getattr(protocol, "normalization", "matched") == "authors"
    if authors and preprocessing.mean in _CIFAR_MEANS:
        mean, std = _CIFAR_EVALUATION
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std)
    return preprocessing


def _source_title(name: str, split: str) -> str:
    return f"{name}, split {split}" if name and name.startswith("tfds:") else name


def _test_title(protocol, request: Request) -> str | None:
    if not protocol.needs_test:
        return None
    if request.test_source is None:
        return f"one in five of {request.source}, fixed split"
    return _source_title(request.test_source, request.test_split)


def _default_path(
    protocol, path: AnyPath, workdir: AnyPath | None, request: Request
) -> AnyPath | None:
    if workdir is None:
        return None
    name = protocol.name
    if path.parent.name == "checkpoints":
        name += f"-step{path.name}"
    if request.network != "ema":
        name += f"-{request.network}"
    if request.long_tail is not None:
        name += f"-long_tail{request.long_tail:g}"
    if _config(workdir).data.source != request.source:
        name += "-" + re.sub(r"\W+", "-", request.source).strip("-")[-60:]
    return workdir / "evaluation" / f"{name}.json"


def _config(workdir: AnyPath) -> ConfigDict:
    return read_config_file(workdir / "config.json")
