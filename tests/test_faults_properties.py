"""Each parser of ours, given anything: a result or a `UserError` that names the file."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as some
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from resa_jax import UserError
from resa_jax.config import from_json, load_config, to_json
from resa_jax.data.check import read_classes
from resa_jax.data.decode import BadImageError, Decoding, decode_image
from resa_jax.data.listing import read_list
from resa_jax.data.sources import open_source
from resa_jax.paths import as_path
from resa_jax.recipes import parse_variant
from resa_jax.report.run_record import _read_result
from resa_jax.weights.export import read_export
from resa_jax.weights.files import read_tensors
from resa_jax.weights.released import read_release
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import encoder_from_torch
from resa_jax.workdir import read_records


# The folder of a test serves all its examples, each of which writes the file anew.
settings.register_profile(
    "faults",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("faults")

NAMES = some.text(max_size=12)
NUMBERS = some.integers() | some.floats() | some.booleans() | some.none()
JSON = some.recursive(
    NUMBERS | NAMES, lambda s: some.lists(s, max_size=4) | some.dictionaries(NAMES, s, max_size=4)
)


def refused(path, function, *arguments):
    """What the function returns; None where it refuses the file by its name."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(path) in str(error)
        return None


@given(some.lists(some.lists(NAMES, max_size=4), max_size=5), some.booleans())
def test_lists_of_images(tmp_path, rows, named):
    path = tmp_path / "images.csv"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows([["path", "label"], *rows] if named else rows)
    refused(path, read_list, str(path))


@given(some.binary(max_size=200), some.sampled_from(["a.csv", "a.txt"]))
def test_lists_of_anything(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, read_list, str(path))


def test_a_label_of_many_digits(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.csv").write_text(f"path,label\na.png,{'9' * 5000}\na.png,1\n")
    assert read_list(str(tmp_path / "a.csv")).labels == [1, 0]


@given(some.binary(max_size=200))
def test_lists_of_classes(tmp_path, content):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    refused(path, read_classes, str(path), {"cat": 0, "dog": 1})


DTYPES = arrays.scalar_dtypes()
SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)


@given(arrays.arrays(DTYPES, SHAPES), arrays.arrays(DTYPES, SHAPES))
def test_archives(tmp_path, images, labels):
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=labels)
    source = refused(path, open_source, f"npz:{path}")
    if source is not None:
        assert len(source) == len(images)
        names = [source.class_names[label] for label in source.labels]
        assert names == [str(label) for label in labels.reshape(-1)]


MAGIC = [b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"GIF89a", b"BM", b"P6\n"]
MAGIC += [b"RIFF\0\0\0\0WEBP", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\xd8\xff\xe1\0\x20Exif\0\0MM\0*"]


@given(some.sampled_from(MAGIC), some.binary(max_size=300))
def test_images(magic, content):
    try:
        assert decode_image(magic + content, Decoding(32, 10_000)).shape[2] == 3
    except BadImageError as error:
        assert str(error) and " at 0x" not in str(error)


@given(some.dictionaries(NAMES, arrays.arrays(np.float32, SHAPES), min_size=1, max_size=4))
def test_tensors_come_back(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({f"x{name}": tensor for name, tensor in tensors.items()}))
    read = refused(path, read_tensors, path)
    if read is not None:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(read.tensors[f"x{name}"], tensor)
        with pytest.raises(UserError):
            encoder_from_torch(sort_networks(read))


@given(JSON)
def test_headers_of_safetensors(tmp_path, header):
    path = tmp_path / "a.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    refused(path, read_tensors, path)


CONV = ["conv1.weight", "module.encoder.conv1.weight", "backbone.layer1.0.conv1.weight"]
VIT = ["patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight"]
VIT += [
    f"blocks.0.attn.{name}" for name in ("q.weight", "k.weight", "q_bias", "v_bias", "qkv.bias")
]
VIT += [f"blocks.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "fc1", "fc2")]
VIT += ["embeddings.cls_token", "layer.0.attention.q_proj.weight", "blocks.0.attn.qkv.bias_mask"]
SIDES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=7)


@given(some.dictionaries(some.sampled_from(CONV + VIT), SIDES, min_size=1))
def test_tensors_of_any_shape_are_no_encoder(tmp_path, shapes):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}))
    with pytest.raises(UserError):
        encoder_from_torch(sort_networks(read_tensors(path)))


RELEASES = {"architecture", "model_type", "num_attention_heads", "hidden_size", "pretrained_cfg"}


@given(some.dictionaries(some.sampled_from(sorted(RELEASES)), JSON), JSON)
def test_configurations_of_a_release(tmp_path, said, preprocessor):
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    refused(tmp_path, read_release, tmp_path)


@given(JSON)
def test_descriptions_of_an_export(tmp_path, said):
    (tmp_path / "encoder.json").write_text(json.dumps(said))
    refused(tmp_path, read_export, tmp_path, "ema")


@given(some.lists(some.binary(max_size=40) | JSON.map(lambda j: json.dumps(j).encode())))
def test_records(tmp_path, lines):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    for record in read_records(path)[0].values():
        assert isinstance(record["step"], int)


WHOLE = json.loads(to_json(load_config("configs/digits.py:smoke")))


@given(some.sampled_from(sorted(WHOLE)), JSON)
def test_a_config_json_with_another_value(tmp_path, field, value):
    path = as_path(str(tmp_path))
    refused(path, from_json, json.dumps(WHOLE | {field: value}), path)


@given(NAMES)
def test_words_of_a_recipe(variant):
    try:
        parse_variant(variant, ("simclr",), smoke=False)
    except UserError as error:
        assert "This config has no variant" in str(error)


KEYS = some.sampled_from(["protocol", "results", "hyperparameters", "seed", "step", "encoding"])


@given(JSON | some.dictionaries(KEYS, JSON), some.sampled_from(["knn", "baselines"]))
def test_results_of_an_evaluation(tmp_path, said, name):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(said))
    refused(path, _read_result, path)
