"""What people and machines do to the files of a run: read, mended with a line, or refused."""

import json
import logging
import multiprocessing
import os
import random
from pathlib import Path

import pytest

from resa_jax import UserError
from resa_jax.config import load_config, read_config_file, to_json
from resa_jax.report.run_record import read_run
from resa_jax.training.metrics import MetricsWriter
from resa_jax.training.records import last_metrics
from resa_jax.training.wall_time import WallTime
from resa_jax.workdir import claim_workdir, locked, read_records


ROOT = Path(__file__).parents[1]
GARBAGE = [
    b"\0" * 50,
    b"",
    b"\xff\xfe\x00",
    b'{"step": 4',
    b"[1, 2]",
    b'{"epoch": 1.0}',
    b"[" * 9999,
]


@pytest.fixture(scope="module")
def config():
    return load_config(f"{ROOT / 'configs' / 'digits.py'}:smoke")


@pytest.fixture(autouse=True)
def heard(caplog):
    """What the package logs reaches caplog, whatever a command did to its logger."""
    log = logging.getLogger("resa_jax")
    before = log.propagate
    log.propagate = True
    with caplog.at_level(logging.INFO, "resa_jax"):
        yield
    log.propagate = before


def line(step):
    return json.dumps({"step": step, "epoch": step / 10, "loss": 1.0 / step}).encode() + b"\n"


def resume(workdir, config, step):
    with MetricsWriter(workdir, config, WallTime(), step, 20, 10, 1.0):
        pass


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_among_the_records(tmp_path, config, garbage, caplog):
    claim_workdir(tmp_path, config)
    path = tmp_path / "metrics.jsonl"
    damaged = line(1) + garbage + b"\n" + line(2) + line(3)
    path.write_bytes(damaged)
    assert last_metrics(tmp_path)["step"] == 3
    assert [record["step"] for record in read_run(tmp_path).records] == [1, 2, 3]
    assert caplog.text.count("metrics.jsonl") >= 2
    resume(tmp_path, config, 2)
    assert path.read_bytes() == line(1) + line(2)
    assert "1 of its lines are no records (2)" in caplog.text
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged


def test_half_a_line_is_what_a_kill_leaves(tmp_path, config, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:9])
    resume(tmp_path, config, 1)
    assert path.read_bytes() == line(1)
    assert not caplog.text


@pytest.mark.parametrize("content", [None, b""])
def test_lost_records_are_spoken_of(tmp_path, config, content, caplog):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    resume(tmp_path, config, 5)
    assert "metrics.jsonl" in caplog.text and "up to step 5" in caplog.text
    last_metrics(tmp_path)
    assert "has no record" in caplog.text


def test_records_that_end_too_early_are_spoken_of(tmp_path, config, caplog):
    path = tmp_path / "metrics.jsonl"
    every = config.log_every
    path.write_bytes(b"".join(line(n * every) for n in range(1, 5)))
    resume(tmp_path, config, 4 * every + every - 1)
    assert not caplog.text  # the next record was not due yet
    resume(tmp_path, config, 6 * every)
    assert f"ends at step {4 * every}; its records up to step {6 * every} are lost" in caplog.text
    caplog.clear()
    last_metrics(tmp_path, 4 * every)
    assert not caplog.text
    last_metrics(tmp_path, 5 * every)
    assert f"up to step {5 * every} are lost" in caplog.text


def test_half_a_record_of_before_is_spoken_of(tmp_path, config, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + line(3)[:14])
    resume(tmp_path, config, 2)  # what a kill leaves
    assert not caplog.text
    path.write_bytes(line(1) + line(2) + line(2)[:14])
    last_metrics(tmp_path, 2)
    assert "ends within a record of step 2, which is lost" in caplog.text
    caplog.clear()
    resume(tmp_path, config, 2)
    assert "ends within a record of step 2, which is lost" in caplog.text


def test_a_thousand_damaged_records(tmp_path):
    """Whatever a file holds, reading it gives records or line numbers."""
    generator = random.Random(0)
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(map(line, range(1, 6)))
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        records, faults = read_records(path)
        assert len(records) + len(faults) <= data.count(b"\n")
        assert all(isinstance(record["step"], int) for record in records.values())


def broken_jsons(text):
    """Each group and field replaced by values of other types, and files that are no JSON at all."""
    yield from ("", "[]", "3", "null", '"text"', "{", "{}", "[" * 100_000, "\0" * 9, '{"a": 1}')
    tree = json.loads(text)
    for name in tree:
        for value in ({}, [], [[]], "", {"a": {"b": []}}, -1, None, "\ud800"):
            yield json.dumps(tree | {name: value})
        yield json.dumps({key: tree[key] for key in tree if key != name})


def test_any_config_json_is_read_or_refused_by_name(tmp_path, config):
    path = tmp_path / "config.json"
    refused = 0
    for text in broken_jsons(to_json(config)):
        path.write_text(text)
        try:
            read_config_file(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 150
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"config\.json is damaged: byte 0"):
        read_config_file(path)


@pytest.mark.parametrize("name", ["encoder", "checkpoints", "evaluation", "tensorboard"])
def test_a_file_in_the_place_of_a_folder(tmp_path, config, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"{name} is no folder"):
        claim_workdir(tmp_path, config)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file(tmp_path, config, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} is no file"):
        claim_workdir(tmp_path, config)


def test_a_dangling_link(tmp_path, config):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="checkpoints is no folder"):
        claim_workdir(tmp_path, config)


def _hold(workdir, ready):
    with locked(workdir):
        ready.set()
        multiprocessing.Event().wait()


def test_a_second_run_is_kept_out_until_the_first_has_died(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(60)
    words = rf"in use by another run \(process {other.pid} on"
    with pytest.raises(UserError, match=words), locked(tmp_path):
        pass
    other.kill()  # leaves no chance to clean up
    other.join()
    with locked(tmp_path):
        pass
