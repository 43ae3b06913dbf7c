"""Scores a trained encoder, or features of any origin, by the protocols of the paper.

python -m resa_jax.evaluate --encoder=PATH --protocol=NAME --source=SOURCE [--test_source=SOURCE]
python -m resa_jax.evaluate --features=TRAIN.npz --test_features=TEST.npz --protocol=NAME

NAME is one protocol or several with commas between; `resa_jax/evaluation/protocols.py` lists them
with all their numbers. Prints a table and writes a JSON file for each protocol: --output, or
WORKDIR/evaluation/NAME.json where the encoder belongs to a run. Without a test source one sample in
five of the source is held out, by a fixed split; a `tfds:` source brings its own test split.
Started on every host of a slice or cluster, as `resa_jax.main` is, the processes share the work.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from resa_jax.cli import run
from resa_jax.data.check import KINDS, check_source
from resa_jax.errors import UserError
from resa_jax.evaluation.protocols import ON_FEATURES, create_protocol
from resa_jax.image_flags import define_statistics
from resa_jax.image_size import IMAGE_SIZE, ImageSize
from resa_jax.paths import AnyPath, as_path, write_whole
from resa_jax.processes import cluster


_ENCODER = flags.DEFINE_string(
    "encoder", None, "A run's workdir, DIR/checkpoints/STEP, an export, or PyTorch weights."
)
_ARCH = flags.DEFINE_string("arch", None, "Architecture of PyTorch weights.")
_NETWORK = flags.DEFINE_enum("network", "ema", ["ema", "online"], "Which network of a checkpoint.")
_PROTOCOL = flags.DEFINE_list("protocol", None, "Protocols, with commas between.", required=True)
_SOURCE = flags.DEFINE_string("source", None, f"Images: {KINDS}.")
_TEST_SOURCE = flags.DEFINE_string("test_source", None, "Images to test on.")
_CLASSES = flags.DEFINE_string("classes", None, "File that lists the only classes to look at.")
_LONG_TAIL = flags.DEFINE_float(
    "long_tail", None, "Keep of --source a long tail: the largest class over the smallest, as 20."
)
_SPLIT = flags.DEFINE_string("split", "train", "Split of a tfds: or hf: source.")
_TEST_SPLIT = flags.DEFINE_string("test_split", "test", "Split of a tfds: or hf: test source.")
_FEATURES = flags.DEFINE_string("features", None, "npz with encodings and labels, no encoder.")
_TEST_FEATURES = flags.DEFINE_string("test_features", None, "The same to test on.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_SEED = flags.DEFINE_integer("seed", 0, "Of classifiers and k-means.")
_ALL = flags.DEFINE_bool("all_checkpoints", False, "Score every checkpoint of the run.")
_CACHE = flags.DEFINE_string("cache", None, "Folder for features; default WORKDIR/evaluation.")
_IMAGE_SIZE = flags.DEFINE_list(
    "image_size", None, "Side of the images, or height,width; default the encoder's."
)
_RESIZE = flags.DEFINE_integer("resize", None, "Short side before the centre crop.", lower_bound=1)
_BATCH = flags.DEFINE_integer("extract_batch", 256, "Images at a time through the encoder.")
_ON_BAD_IMAGE = flags.DEFINE_enum("on_bad_image", "error", ["error", "skip"], "Undecodable images.")
_find_processes = cluster.define_flags()
_statistics = define_statistics()

# What a protocol takes from the command line; None leaves its own value.
_FIELDS = {
    "ks": flags.DEFINE_list("ks", None, "Numbers of neighbours, as 5,10,20."),
    "k": flags.DEFINE_integer("k", None, "Number of neighbours."),
    "temperature": flags.DEFINE_float("temperature", None, "Of the neighbours' votes."),
    "epochs": flags.DEFINE_integer("epochs", None, "Epochs of training."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Batch of training."),
    "rates": flags.DEFINE_list("rates", None, "Learning rates, as 0.1,1,10, trained in one pass."),
    "blocks": flags.DEFINE_integer("blocks", None, "Last blocks of a ViT that are read."),
    "encoder_rate": flags.DEFINE_float("encoder_rate", None, "Learning rate of the encoder."),
    "head_rate": flags.DEFINE_float("head_rate", None, "Learning rate of the head."),
    "list_file": flags.DEFINE_string("list_file", None, "Names of the images to train on."),
    "normalization": flags.DEFINE_string("normalization", None, "authors or matched."),
}


def main(arguments: list[str]) -> None:
    """Checks the command before anything heavy is imported, then evaluates."""
    del arguments
    protocols = [create_protocol(name, **_fields()) for name in _PROTOCOL.value]
    if (_ENCODER.value is None) == (_FEATURES.value is None):
        raise UserError("Give either --encoder=PATH with --source, or --features=TRAIN.npz.")
    if _OUTPUT.value and (len(protocols) > 1 or _ALL.value):
        raise UserError("--output names one file; leave it out to write one for each result.")
    if _FEATURES.value is None:
        _check_images()
    else:
        _check_features(protocols)

    processes = _find_processes()

    from resa_jax.processes.distributed import joined_processes

    with joined_processes(processes):
        _evaluate(protocols)


def _evaluate(protocols):
    import jax

    from resa_jax.evaluation import command
    from resa_jax.report.tables import format_result

    results: Iterable[tuple[dict, AnyPath | None]]
    if _FEATURES.value is not None:
        results = command.evaluate_features(
            protocols, Path(_FEATURES.value), _path(_TEST_FEATURES.value), _SEED.value
        )
    else:
        results = command.evaluate_encoders(protocols, _request(command))
    for result, default in results:
        if jax.process_index() > 0:
            continue
        path = _path(_OUTPUT.value) or default
        print(f"\n{format_result(result)}", flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(result, indent=2) + "\n")
            print(f"Written to {path}.")


def _request(command):
    return command.Request(
        encoder=as_path(_ENCODER.value or "", "--encoder="),
        arch=_ARCH.value,
        network=_NETWORK.value,
        source=_SOURCE.value,
        split=_SPLIT.value,
        test_source=_test_source(),
        test_split=_TEST_SPLIT.value,
        classes=_CLASSES.value,
        long_tail=_LONG_TAIL.value,
        seed=_SEED.value,
        all_checkpoints=_ALL.value,
        cache=_path(_CACHE.value),
        image_size=_image_size(),
        resize=_RESIZE.value,
        batch_size=_BATCH.value,
        on_bad_image=_ON_BAD_IMAGE.value,
        **_statistics(),
    )


def _fields():
    flags_given = {name: flag.value for name, flag in _FIELDS.items()}
    values: dict[str, Any] = {k: v for k, v in flags_given.items() if v is not None}
    for name, kind in (("ks", int), ("rates", float)):
        if name in values:
            try:
                values[name] = tuple(kind(text) for text in values[name])
            except ValueError:
                raise UserError(f"--{name}={','.join(values[name])} must be numbers.") from None
    return values


def _image_size() -> ImageSize | None:
    if _IMAGE_SIZE.value is None:
        return None
    sides = [int(text) if text.isdecimal() else 0 for text in _IMAGE_SIZE.value]
    size = sides[0] if len(sides) == 1 else (sides[0], sides[-1])
    if len(sides) > 2 or not IMAGE_SIZE.fits(size):
        raise UserError(
            f"--image_size={','.join(_IMAGE_SIZE.value)} must be a side in pixels, or height,width."
        )
    return size


def _check_images():
    if not as_path(_ENCODER.value or "", "--encoder=").exists():
        raise UserError(f"--encoder={_ENCODER.value}: there is no such file or folder.")
    if _SOURCE.value is None:
        raise UserError(f"--encoder needs --source=SOURCE: {KINDS}.")
    if _LONG_TAIL.value is not None and not 1 <= _LONG_TAIL.value <= 1e9:
        raise UserError(f"--long_tail={_LONG_TAIL.value:g} must be 1 or more, at most 1e+09.")
    _image_size()
    options: dict[str, Any] = {"classes": _CLASSES.value, "long_tail": _LONG_TAIL.value}
    check_source(_SOURCE.value, None, split=_SPLIT.value, **options)
    if _test_source() is not None:
        check_source(_test_source(), None, classes=_CLASSES.value, split=_TEST_SPLIT.value)


def _check_features(protocols):
    for protocol in protocols:
        if protocol.name not in ON_FEATURES:
            raise UserError(
                f"Protocol {protocol.name} trains on images, so it takes --encoder and --source, "
                f"not --features; on features there are: {', '.join(ON_FEATURES)}."
            )
    for flag in (_FEATURES, _TEST_FEATURES):
        if flag.value is not None and not os.path.isfile(flag.value):
            raise UserError(f"--{flag.name}={flag.value}: there is no such file.")


def _test_source():
    if _TEST_SOURCE.value is None and (_SOURCE.value or "").startswith("tfds:"):
        return _SOURCE.value
    return _TEST_SOURCE.value


def _path(text):
    return None if text is None else as_path(text)


if __name__ == "__main__":
    run(main)
