"""Damaged checkpoints and exports: named, passed over for an older one, and never read wrongly."""

import dataclasses
import gc
import json
import logging
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax import UserError, load_encoder
from resa_jax.checkpoint import Checkpoints, read_subtree, refuse_newer_format, restore_newest
from resa_jax.integrity import DamagedError, checksums
from resa_jax.models.network import split
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.export import export_encoder


STEPS = (1, 2, 3)


@dataclasses.dataclass
class State:
    step: Any
    params: Any
    buffers: Any


def state(step):
    encoder = {
        "kernel": np.random.default_rng(step).normal(size=(100, 50)).astype(np.float32),
        "bias": jnp.full(7, step, jnp.bfloat16),
    }
    return State(jnp.int32(step), {"encoder": jax.tree.map(jnp.asarray, encoder)}, {})


def abstract():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return State(**jax.tree.map(shape, vars(state(0))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory, keep=3, config="{}") as checkpoints:
        for step in STEPS:
            checkpoints.save(state(step), step)
    return directory


@pytest.fixture(autouse=True)
def short_collections():
    """The collector looks at what a test leaves, not at what the tests before hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def assert_is(restored, step):
    for found, wanted in zip(
        jax.tree.leaves(vars(restored)), jax.tree.leaves(vars(state(step))), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def cut(file, generator):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file, generator):
    file.write_bytes(b"")


def missing(file, generator):
    file.unlink()


def garbled(file, generator):
    file.write_bytes(generator.bytes(file.stat().st_size))


def flipped(file, generator):
    data = bytearray(file.read_bytes())
    data[generator.integers(len(data))] ^= 1 << generator.integers(8)
    file.write_bytes(data)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_intact_is_restored(saved):
    step, restored = restore_newest(saved, abstract())
    assert step == 3
    assert_is(restored, 3)
    assert restore_newest(saved / "none", abstract()) == (0, None)


@pytest.mark.parametrize("damage", [cut, empty, missing, garbled, flipped])
def test_no_damage_of_any_file_gives_other_numbers(saved, tmp_path, damage, caplog, capfd):
    """The newest is restored exactly, where the file does not matter, or named and passed over.

    Nothing but the warning is said, neither then nor when the collector comes.
    """
    generator = np.random.default_rng(0)
    passed_over = 0
    for number, file in enumerate(files(saved / "3")):
        directory = shutil.copytree(saved, tmp_path / str(number))
        damage(directory / file.relative_to(saved), generator)
        with caplog.at_level(logging.WARNING, "resa_jax"):
            logging.getLogger("resa_jax").propagate = True
            caplog.clear()
            step, restored = restore_newest(directory, abstract())
        gc.collect()
        assert not capfd.readouterr().err
        assert_is(restored, step)
        assert step in (2, 3)
        if step == 2:
            passed_over += 1
            assert f"{directory / '3'} is damaged" in caplog.text
            assert (directory / "damaged-3").is_dir() and not (directory / "3").exists()
            with Checkpoints(directory, keep=3, config="{}") as checkpoints:
                assert checkpoints.latest_step == 2
                checkpoints.save(state(3), 3)
            assert restore_newest(directory, abstract())[0] == 3
    assert passed_over >= 2


def test_half_a_copy_is_passed_over(copied):
    (copied / "9").mkdir()
    (copied / "8").write_text("a file")
    step, restored = restore_newest(copied, abstract())
    assert step == 3
    assert_is(restored, 3)
    assert sorted(os.listdir(copied)) == ["1", "2", "3", "damaged-8", "damaged-9"]


def test_nothing_is_moved_where_none_is_intact(copied):
    for step in STEPS:
        shutil.rmtree(copied / str(step) / "state")
    with pytest.raises(UserError, match=r"No checkpoint in .* is intact.*--workdir"):
        restore_newest(copied, abstract())
    assert sorted(os.listdir(copied)) == ["1", "2", "3"]


def test_one_flipped_bit_of_the_numbers_is_named(copied):
    largest = max(files(copied / "3"), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(DamagedError, match=r"3 is damaged: params/encoder/kernel does not hold"):
        read_subtree(copied / "3", "params/encoder")


def test_a_newer_format_is_refused(copied):
    path = copied / "3" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    for refuse in (refuse_newer_format, lambda directory: restore_newest(directory, abstract())):
        with pytest.raises(UserError, match=r"in format 3; this version .* reads up to format 2"):
            refuse(copied)
    assert (copied / "3").is_dir()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32", "uint8", "bool"])
def test_checksums(dtype):
    """Against the sum that NumPy makes of the bytes, on one device and cut into shards."""
    with jax.enable_x64(True):
        values = np.asarray(jnp.arange(64).reshape(16, 4).astype(dtype))
        width = min(values.itemsize, 4)
        words = np.frombuffer(values.tobytes(), f"<u{width}").astype(object)
        wanted = {"array": int(words.sum() % 2**32)}
        mesh = jax.make_mesh((8,), ("data",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        assert checksums({"array": values}) == wanted
        assert checksums({"array": jnp.asarray(values)}) == wanted
        assert checksums({"array": jax.device_put(values, rows)}) == wanted


@pytest.fixture
def exported(tmp_path):
    spec = EncoderSpec("vit_s16", image_size=8, patch_size=4, width=64, depth=1)
    arrays = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(leaf.dtype),
        split(spec.create())[1],
    )
    export_encoder(tmp_path / "encoder", spec, arrays, {}, network="ema", step=7)
    load_encoder(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_export_of_before_other_channels_is_read(exported):
    path, images = exported / "encoder.json", np.full((1, 8, 8, 3), 7, np.uint8)
    expected = np.asarray(load_encoder(exported)(images))
    description = json.loads(path.read_text())
    for name in ("channels", "bits", "gray_max"):
        del description[name]
    path.write_text(json.dumps(description))
    np.testing.assert_array_equal(load_encoder(exported)(images), expected)


def test_a_damaged_export_is_refused(exported):
    largest = max(files(exported), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(DamagedError, match="other numbers than were saved"):
        load_encoder(exported)
    shutil.rmtree(exported / "weights")
    with pytest.raises(DamagedError, match="is damaged"):
        load_encoder(exported)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"name": 3}', "[" * 100_000, "\0\0"])
def test_a_description_that_is_none(exported, text):
    (exported / "encoder.json").write_text(text)
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(exported)


def test_a_save_that_fails_is_noticed_at_the_next_look(tmp_path):
    """Orbax's own writing fails; the state before stays."""
    with (
        pytest.raises(UserError, match=r"step 2 could not be written.*after step 1"),
        Checkpoints(tmp_path / "checkpoints", keep=3, config="{}") as checkpoints,
    ):
        checkpoints.save(state(1), 1)
        checkpoints.check(wait=True)
        (tmp_path / "checkpoints").rename(tmp_path / "gone")
        (tmp_path / "checkpoints").write_text("in the way")
        checkpoints.save(state(2), 2)
        checkpoints.check(wait=True)
