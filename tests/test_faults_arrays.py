"""npz files that are damaged, of another kind, or hold what a careless reader takes for more."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from resa_jax import UserError
from resa_jax.data.check import check_source, read_classes
from resa_jax.data.sources import open_source
from resa_jax.evaluation.feature_sets import align_labels, read_features


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (
            [20261126, 19990101, 20261126, 20000229],
            [2, 0, 2, 1],
            ["19990101", "20000229", "20261126"],
        ),
        ([2**40, 2**40 + 2**32, 0, 0], [1, 2, 0, 0], ["0", str(2**40), str(2**40 + 2**32)]),
        (np.array([2**64 - 1, 1, 1, 1], np.uint64), [1, 0, 0, 0], ["1", str(2**64 - 1)]),
        ([3, 0, 0, 3], [3, 0, 0, 3], ["0", "1", "2", "3"]),
        ([[1], [0], [0], [1]], [1, 0, 0, 1], ["0", "1"]),
    ],
)
def test_labels_are_counted(tmp_path, labels, numbers, names):
    """By their values as they were given: nothing wraps, nothing is as large as a label."""
    source = open_source(save(tmp_path / "a.npz", images=IMAGES, labels=np.array(labels)))
    assert np.asarray(source.labels).tolist() == numbers
    assert list(source.class_names) == names


def test_counted_labels_of_two_files_are_aligned_by_their_values(tmp_path):
    for name, labels in (("a", [900, 7, 7, 100]), ("b", [100, 900, 900, 100])):
        np.savez(tmp_path / f"{name}.npz", encodings=np.eye(4), labels=np.array(labels))
    train, test = (read_features(tmp_path / f"{name}.npz") for name in "ab")
    aligned = align_labels(test.labels, test.class_names, train.labels, train.class_names)
    assert [train.class_names[label] for label in aligned] == ["100", "900", "900", "100"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES[0]}, r"\(8, 8, 3\) is one image.*images\[None\]"),
        ({"images": IMAGES, "labels": np.zeros((4, 2), int)}, "labels"),
        ({"images": IMAGES, "labels": np.zeros(4)}, "must be integers"),
        ({"images": IMAGES.astype(np.uint16)}, "must be uint8"),
        ({"images": IMAGES[:0]}, "must be uint8"),
    ],
)
def test_arrays_of_the_wrong_form_are_refused(tmp_path, arrays, words):
    name = save(tmp_path / "a.npz", **arrays)
    for look in (check_source, open_source):
        with pytest.raises(UserError, match=words):
            look(name)


def damaged():
    """Bytes of files that are no npz file, or one that is broken or hostile."""
    whole = io.BytesIO()
    np.savez_compressed(whole, images=IMAGES, labels=np.arange(4))
    whole = whole.getvalue()
    yield from (b"", b"PK", b"\x93NUMPY", whole[: len(whole) // 2], whole[:-30], whole[30:])
    for position in range(40, len(whole) - 40, len(whole) // 12):
        yield whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
    single = io.BytesIO()
    np.save(single, IMAGES)
    yield single.getvalue()
    headers = [b"{", b"[]", b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3)}"]
    headers += [b"{'descr': '|u1', 'fortran_order': False, 'shape': 'x'}", b"(" * 5000]
    headers += [b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 99999, 9, 3)}"]
    for header in headers:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            length = len(header).to_bytes(2, "little")
            archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + length + header)
        yield file.getvalue()


@pytest.mark.parametrize("content", list(damaged()), ids=lambda content: str(len(content)))
def test_damaged_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    for read, name in ((open_source, f"npz:{path}"), (read_features, path)):
        try:
            source = read(name)
        except UserError as error:
            assert "broken.npz" in str(error)
        else:  # the flipped bit was in what nobody reads
            assert len(source) == 4


def test_one_array_is_no_set_of_features(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(UserError, match=r"a\.npy holds one array without a name"):
        read_features(tmp_path / "a.npy")


def test_labels_beyond_the_names_of_the_classes_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, encodings=np.eye(3), labels=np.array([0, 1, 2]), class_names=["a", "b"])
    with pytest.raises(UserError, match="class_names has 2"):
        read_features(path)


def test_class_lists_of_other_encodings(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcafé\ntea\n".encode())
    assert read_classes(str(path), ()) == ["café", "tea"]
    path.write_bytes("café\ntea\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes\.txt is not in UTF-8"):
        read_classes(str(path), ())


def test_classes_with_spaces_in_their_names(tmp_path):
    """A line that is a class names it; of other lines the first word counts (n01440764 tench)."""
    for name in ("golden retriever", "tench", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "0.png")
    (tmp_path / "classes.txt").write_text("golden retriever\ntench, Tinca tinca\ncat a pet\n")
    (tmp_path / "wrong.txt").write_text("golden\n")
    with pytest.raises(UserError, match="no class 'tench,'"):
        open_source(f"folder:{tmp_path / 'images'}", classes=str(tmp_path / "classes.txt"))
    (tmp_path / "classes.txt").write_text("golden retriever\ntench Tinca tinca\n")
    source = open_source(f"folder:{tmp_path / 'images'}", classes=str(tmp_path / "classes.txt"))
    assert source.class_names == ("golden retriever", "tench") and len(source) == 2
    with pytest.raises(UserError, match="no class 'golden'"):
        check_source(f"folder:{tmp_path / 'images'}", classes=str(tmp_path / "wrong.txt"))


def test_an_archive_that_inflates_beyond_the_memory_is_refused(tmp_path):
    """From its header alone, which says 2**40 images."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 8, 8), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("images.npy", start + header)
    with pytest.raises(UserError, match=r"take 196608\.0 GiB, and are held in memory"):
        check_source(f"npz:{tmp_path / 'a.npz'}")


def test_what_else_an_archive_holds_is_not_read(tmp_path):
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, more=np.array([object()], object))
    assert len(open_source(f"npz:{tmp_path / 'a.npz'}")) == 4
