"""Files from elsewhere: nothing in them is run, and they cost no more than their size allows."""

import collections
import csv
import json
import logging
import os
import pickle
import random
import resource
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from resa_jax import UserError
from resa_jax.report.collection import _write_csv
from resa_jax.report.run_record import read_run
from resa_jax.weights.files import read_tensors, write_tensors


@pytest.fixture
def bounded():
    """The test takes less than 200 MB at its peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


class Call:
    """A pickle that calls `function(*arguments)` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


LARGE = 4 * 2**30
HOSTILE = {
    "bytearray": Call(bytearray, LARGE),
    "ndarray": Call(np.ndarray, (LARGE,), "u1"),
    "objects": Call(np.ndarray, (4,), "O", bytes(64)),
    "reconstruct": Call(np._core.multiarray._reconstruct, np.ndarray, (LARGE,), b"b"),
    "encode": Call(__import__("codecs").encode, "a", "rot13"),
    "system": Call(__import__("os").system, "touch /tmp/run"),
    "eval": Call(eval, "1"),
    "getattr": Call(getattr, {}, "clear"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_call_nothing_and_take_no_memory(tmp_path, name, bounded):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": HOSTILE[name]}}))
    with pytest.raises(UserError, match=r"a\.pkl (was not loaded|is damaged)"):
        read_tensors(path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read(tmp_path, protocol):
    arrays = collections.OrderedDict(
        a=np.arange(6.0).reshape(2, 3), b=np.float16([1, 2]), c=np.asfortranarray(np.eye(3))
    )
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    found = read_tensors(tmp_path / "a.pkl").tensors
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        safetensors(b"not JSON"),
        safetensors(b"[" * 100_000),
        safetensors({"a": 3}),
        safetensors({"a": tensor("F32", [2**40], 0, 4)}, bytes(4)),
        safetensors({"a": tensor("F32", [-1], 0, 4)}, bytes(4)),
        safetensors({"a": tensor("BOGUS", [1], 0, 4)}, bytes(4)),
        safetensors(
            {"__metadata__": {"resa_jax.encoder": "{"}} | {"a": tensor("U8", [1], 0, 1)}, b"a"
        ),
        safetensors(
            {"__metadata__": {"resa_jax.encoder": "[]"}} | {"a": tensor("U8", [1], 0, 1)}, b"a"
        ),
        safetensors({f"a{i}": tensor("U8", [0], 0, 0) for i in range(100_000)}),
    ],
)
def test_hostile_safetensors(tmp_path, content, bounded):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_written_weights_are_readable_as_the_umask_says(tmp_path, suffix):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / f"a{suffix}", {"w": np.ones(3, np.float32)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / f"a{suffix}").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_float8_is_read_or_refused(tmp_path, dtype):
    (tmp_path / "a.safetensors").write_bytes(safetensors({"a": tensor(dtype, [4], 0, 4)}, bytes(4)))
    try:
        assert read_tensors(tmp_path / "a.safetensors").tensors["a"].shape == (4,)
    except UserError as error:
        assert "a.safetensors" in str(error)


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_a_thousand_damaged_files(tmp_path, suffix, bounded):
    generator = random.Random(0)
    tensors = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3, np.float16)}
    whole = save(tensors) if suffix == ".safetensors" else pickle.dumps({"model": tensors})
    path = tmp_path / f"a{suffix}"
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            read_tensors(path)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"protocol": 3}',
        '{"protocol": "knn"}',
        '{"protocol": "knn", "results": [], "hyperparameters": {}, "seed": 0}',
        '{"protocol": "knn", "results": {"h": 3}, "hyperparameters": {}, "seed": 0}',
        '{"protocol": "knn", "results": {"h": {"a": "x"}}, "hyperparameters": {}, "seed": 0}',
        '{"protocol": "knn", "results": {}, "hyperparameters": {}, "seed": 0, "step": "a"}',
    ],
)
def test_results_that_are_none_are_left_out_of_the_report(tmp_path, text, caplog):
    from test_faults_workdir import ROOT

    from resa_jax.config import load_config, to_json

    config = load_config(f"{ROOT / 'configs' / 'digits.py'}:smoke")
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "loss": 1.0}\n')
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "knn.json").write_text(text)
    logging.getLogger("resa_jax").propagate = True
    assert read_run(tmp_path).evaluations == {}
    assert "knn.json" in caplog.text


def test_tables_hold_no_formula(tmp_path):
    rows = [("=cmd()", 1), ("+1", -2.5), ("-x.png", 3), ("@a", 4), ("cat.png", 5)]
    _write_csv(tmp_path / "a.csv", ("path", "score"), rows)
    with (tmp_path / "a.csv").open() as file:
        cells = [row[0] for row in csv.reader(file)]
    assert cells == ["path", "'=cmd()", "'+1", "'-x.png", "'@a", "cat.png"]
