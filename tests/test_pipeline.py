"""Batches depend on (seed, step) alone: not on processes, threads, or where a run was resumed."""

import os
import time

import data_samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax.data import pipeline
from resa_jax.data.decoding import Decoding
from resa_jax.data.pipeline import (
    batches,
    evaluation_batches,
    steps_per_epoch,
    usable_cores,
)
from resa_jax.data.sources import open_source
from resa_jax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = data_samples.photographs(tmp_path_factory.mktemp("photographs"), count=16)
    return open_source(f"folder:{folder}", Decoding(128))


def collect(source, **options):
    defaults = {"batch_size": 4, "seed": 7, "start_step": 0, "num_steps": 6}
    with batches(source, **(defaults | options)) as iterator:
        return list(iterator)


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_hold_what_they_say(photographs):
    for batch in collect(photographs):
        assert type(batch["images"]) is np.ndarray
        assert batch["images"].shape == (4, 128, 192, 3) and batch["images"].dtype == np.uint8
        assert batch["num_bad"] == 0
        for name in ("sizes", "labels", "indices"):
            assert batch[name].dtype == np.int32
        np.testing.assert_array_equal(batch["labels"], photographs.labels[batch["indices"]])
        for image, (height, width, turned), index in zip(
            batch["images"], batch["sizes"], batch["indices"], strict=True
        ):
            assert min(height, width) == 128 or max(height, width) == 192
            upright = image[:height, :width].swapaxes(0, 1) if turned else image[:height, :width]
            np.testing.assert_array_equal(upright, photographs[index])
            assert not image[height:].any() and not image[:, width:].any()


def test_batches_in_memory_hold_the_same_as_loaded_one_by_one(digits):
    for batch in collect(digits, batch_size=64, num_steps=3):
        for image, label, index in zip(
            batch["images"], batch["labels"], batch["indices"], strict=True
        ):
            np.testing.assert_array_equal(image, digits[index])
            assert label == digits.labels[index]
        assert (batch["sizes"] == (8, 8, 0)).all()


def test_an_epoch_takes_each_image_at_most_once_and_reshuffles(digits):
    steps = steps_per_epoch(len(digits), 256)
    assert steps == 7
    indices = [b["indices"] for b in collect(digits, batch_size=256, num_steps=2 * steps)]
    first, second = np.concatenate(indices[:steps]), np.concatenate(indices[steps:])
    assert len(np.unique(first)) == len(first) == len(np.unique(second)) == steps * 256
    assert (first != second).mean() > 0.9
    assert set(first) != set(second)  # the images left over are others
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.1


def test_the_seed_decides_the_order(digits):
    one, same, other = (collect(digits, seed=seed, num_steps=2) for seed in (1, 1, 2))
    assert_same(one, same)
    assert (one[0]["indices"] != other[0]["indices"]).any()


@pytest.mark.parametrize("start_step", [1, 4, 5, 9])
def test_resumed_batches_are_those_of_the_unbroken_run(photographs, start_step):
    # 16 images in batches of 4: steps 4 and 8 begin epochs.
    assert_same(
        collect(photographs, num_steps=10)[start_step:],
        collect(photographs, num_steps=10, start_step=start_step),
    )


def test_a_finished_run_has_no_batches(photographs):
    assert collect(photographs, start_step=6) == []


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch_in_order(photographs, digits, process_count):
    for source in (photographs, digits):
        whole = collect(source, batch_size=8, num_steps=3)
        parts = [
            collect(source, batch_size=8, num_steps=3, process_index=i, process_count=process_count)
            for i in range(process_count)
        ]
        for step, batch in enumerate(whole):
            for name in ("images", "sizes", "labels", "indices"):
                joined = np.concatenate([part[step][name] for part in parts])
                np.testing.assert_array_equal(batch[name], joined)


def test_threads_do_not_change_the_batches(photographs, recwarn):
    # From a step inside the first epoch into the second.
    options = {"num_steps": 7, "start_step": 1}
    one, three, default = (collect(photographs, **options, workers=n) for n in (1, 3, None))
    assert_same(one, three)
    assert_same(one, default)
    assert not [str(w.message) for w in recwarn.list]


def test_memory_is_used_again_once_nobody_has_it(photographs):
    """What is still referred to, by a view of a view or by JAX, keeps its pixels."""
    whole = collect(photographs, num_steps=40)  # all held at once, so in memory of their own
    with batches(photographs, batch_size=4, seed=7, start_step=0, num_steps=40) as stream:
        held, places = [], set()
        for step, batch in enumerate(stream):
            places.add(batch["images"].ctypes.data)
            if step % 7 == 0:
                held.append((step, batch["images"][1:][0, ::2]))
            if step % 7 == 1:
                held.append((step, jnp.asarray(batch["images"])[1, ::2]))
                held.append((step, jax.device_put(batch["images"])))
            np.testing.assert_array_equal(batch["images"], whole[step]["images"])
    assert len(places) < 35
    for step, pixels in held:
        expected = whole[step]["images"]
        expected = expected if pixels.ndim == 4 else expected[1, ::2]
        np.testing.assert_array_equal(pixels, expected)


def test_a_quota_counts_as_fewer_cores(tmp_path, monkeypatch):
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(pipeline, "_QUOTA", limit)
    cores = len(os.sched_getaffinity(0))
    for text, expected in (("max 100000", cores), ("50000 100000", 1), ("9900000 100000", cores)):
        limit.write_text(text + "\n")
        assert usable_cores() == expected


def test_reading_can_be_stopped_early(photographs):
    with batches(photographs, batch_size=4, seed=0, start_step=0, num_steps=1000) as iterator:
        assert next(iterator)["images"].any()
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_bad_image_stops_the_run_with_its_name(tmp_path):
    source = with_bad_images(tmp_path, on_bad_image="error")
    with pytest.raises(UserError, match=r"bad_0\.jpg cannot be decoded.*on_bad_image"):
        collect(source, num_steps=8)


def test_skipped_images_are_replaced_and_counted(tmp_path):
    source = with_bad_images(tmp_path, on_bad_image="skip")
    (batch,) = collect(source, num_steps=1, batch_size=8)
    # Sorted, the bad files come first and are replaced by the image after them, of index 2.
    assert batch["num_bad"] == 3
    assert sorted(batch["indices"]) == [2, 2, 2, 3, 4, 5, 6, 7]
    for image, size, index in zip(batch["images"], batch["sizes"], batch["indices"], strict=True):
        lying = source[index].swapaxes(0, 1) if size[2] else source[index]
        np.testing.assert_array_equal(image[: size[0], : size[1]], lying)


def with_bad_images(folder, on_bad_image):
    data_samples.photographs(folder, count=6)
    for number in range(2):
        (folder / f"bad_{number}.jpg").write_bytes(b"\xff\xd8 no image")
    return open_source(f"folder:{folder}", Decoding(64), on_bad_image=on_bad_image)


def test_evaluation_follows_the_source_and_fills_up_the_last_batch(photographs, digits):
    for source, batch_size, steps in ((photographs, 6, 3), (digits, 1000, 2)):
        with evaluation_batches(source, batch_size=batch_size) as iterator:
            results = list(iterator)
        indices = np.concatenate([batch["indices"] for batch in results])
        assert len(results) == steps and len(indices) == steps * batch_size
        np.testing.assert_array_equal(indices[: len(source)], np.arange(len(source)))
        assert (indices[len(source) :] == -1).all()
        labels = np.concatenate([batch["labels"] for batch in results])
        np.testing.assert_array_equal(labels[: len(source)], source.labels)
        assert (labels[len(source) :] == -1).all()
        empty = results[-1]["indices"] == -1
        assert not results[-1]["images"][empty].any()
        assert (results[-1]["sizes"][empty] == (*source.canvas[:2], 0)).all()


def test_evaluation_is_shared_among_processes(photographs):
    def run(**options):
        with evaluation_batches(photographs, batch_size=6, **options) as iterator:
            return list(iterator)

    parts = [run(process_index=i, process_count=3) for i in range(3)]
    for step, batch in enumerate(run()):
        for name in ("images", "sizes", "labels", "indices"):
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(batch[name], joined)


def test_evaluation_does_not_touch_the_images_in_memory(digits):
    before = digits.images.pixels.copy()
    with evaluation_batches(digits, batch_size=1000) as iterator:
        list(iterator)
    np.testing.assert_array_equal(before, digits.images.pixels)


def test_batches_of_impossible_size_are_refused(digits):
    for batch_size in (0, -3, 1798):
        with pytest.raises(UserError, match=f"batch_size is {batch_size}[;,] .* 1797 images"):
            collect(digits, batch_size=batch_size)
    with pytest.raises(UserError, match="batch_size=8 must be divisible by the 3 processes"):
        collect(digits, batch_size=8, process_count=3)


def test_batches_are_read_ahead(photographs, monkeypatch):
    loaded = []
    load = photographs.load
    monkeypatch.setattr(photographs, "load", lambda index: loaded.append(index) or load(index))
    with batches(photographs, batch_size=4, seed=0, start_step=0, num_steps=100):
        deadline = time.monotonic() + 20
        while len(loaded) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(loaded) >= 8  # two batches, though none has been asked for
