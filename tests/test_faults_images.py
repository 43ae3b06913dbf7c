"""Folders and files that nobody would make on purpose: counted, named, refused, bounded."""

import io
import logging
import os
import resource
import zlib

import numpy as np
import pytest
from PIL import Image

from resa_jax import UserError
from resa_jax.data.check import check_source
from resa_jax.data.decode import BadImageError, Decoding, decode_image
from resa_jax.data.folder import list_folder
from resa_jax.data.sources import open_source


def write(path, size=8, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path, "PNG")


@pytest.fixture
def classes(tmp_path):
    for name in ("cat", "dog"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def said(caplog):
    log = logging.getLogger("resa_jax")
    before = log.propagate
    log.propagate = True
    with caplog.at_level(logging.INFO, "resa_jax"):
        yield lambda: caplog.text
    log.propagate = before


def test_pipes_and_links_that_lead_nowhere_are_counted(classes, said):
    os.mkfifo(classes / "cat" / "pipe.png")  # opening it would wait for ever
    (classes / "cat" / "itself.png").symlink_to(classes / "cat" / "itself.png")
    (classes / "dog" / "gone.png").symlink_to("nowhere.png")
    (classes / "dog" / "loop").symlink_to(classes)
    source = open_source(f"folder:{classes}")
    assert len(source) == 6 and source.class_names == ("cat", "dog")
    assert "left out 1 pipes, sockets and devices" in said()
    assert "left out 2 links that lead nowhere" in said()


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN"])
def test_folders_of_the_system_are_no_classes(classes, name):
    write(classes / name / "cat" / "0.png")
    folder = list_folder(str(classes))
    assert folder.class_names == ("cat", "dog") and len(folder.names) == 6


@pytest.mark.parametrize("splits", [("train", "val"), ("Train", "Test"), ("training", "testing")])
def test_splits_are_no_classes(tmp_path, splits):
    for split in splits:
        for name in ("cat", "dog"):
            write(tmp_path / split / name / "0.png")
    with pytest.raises(UserError, match=rf"splits .*{splits[1]}.*folder:.*/{min(splits)}"):
        check_source(f"folder:{tmp_path}")
    assert check_source(f"folder:{tmp_path / splits[0]}") == 2


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        write(tmp_path / name / "0.png")
    assert list_folder(str(tmp_path)).class_names == ("bus", "train")


def test_a_stray_image_is_spoken_of(classes, said):
    write(classes / "stray.png")
    assert open_source(f"folder:{classes}").labels is None
    assert "1 of the 7 images, such as stray.png, lie outside of the class folders" in said()


def test_what_is_left_out_is_counted(classes, said):
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE"):
        (classes / "cat" / name).write_text("")
    open_source(f"folder:{classes}")
    for words in ("1 files that end in .heic", "1 files that end in .txt", "without an ending"):
        assert words in said()


@pytest.mark.parametrize("ending, kind", [("jfif", "JPEG"), ("jpe", "JPEG"), ("tga", "TGA")])
def test_rarer_endings_count(tmp_path, ending, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", kind)
    with Image.open(tmp_path / f"a.{ending}") as image:
        np.testing.assert_array_equal(open_source(f"folder:{tmp_path}")[0], np.asarray(image))


def test_postscript_is_never_run(tmp_path, monkeypatch):
    """By any name: what Pillow would do with it is to start Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("it was run"))
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match=r"a\.jpg cannot be decoded: it is no image of a format"):
        open_source(f"folder:{tmp_path}")[0]


def huge_png(side):
    """A few kB that hold side x side pixels."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # 1 bit a pixel
    rows = zlib.compress(bytes(side * (1 + -(-side // 8))), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded():
    data = huge_png(13_000)
    assert len(data) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = "13000 x 13000 pixels, more than data.max_pixels=89478485"
    with pytest.raises(BadImageError, match=words):
        decode_image(data, Decoding())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    with pytest.raises(BadImageError, match=r"more pixels than data\.max_pixels may allow"):
        decode_image(huge_png(14_000), Decoding(max_pixels=178_956_970))
    assert decode_image(huge_png(500), Decoding(canvas=64, max_pixels=250_000)).shape == (64, 64, 3)


def test_large_jpegs_are_bounded_too(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(BadImageError, match=r"400 x 300 pixels, more than data\.max_pixels=100000"):
        decode_image(data, Decoding(max_pixels=100_000))


def test_a_damaged_tiff_is_named_and_nothing_else_is_said(capfd):
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
    whole = bytearray(file.getvalue())
    whole[500:520] = bytes([255] * 20)
    with pytest.raises(BadImageError, match="compressed data are damaged"):
        decode_image(bytes(whole), Decoding())
    assert capfd.readouterr().err == ""


def test_messages_have_no_address(tmp_path):
    (tmp_path / "a.png").write_bytes(b"garbage" * 9)
    with pytest.raises(UserError) as raised:
        open_source(f"folder:{tmp_path}")[0]
    assert " at 0x" not in str(raised.value)


@pytest.mark.parametrize("size", [8, 128])
def test_skipping_has_a_limit(tmp_path, size):
    write(tmp_path / "0.png", size)
    for number in range(1, 51):
        (tmp_path / f"{number}.png").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"skip is meant for single ones"):
        source = open_source(f"folder:{tmp_path}", on_bad_image="skip")
        source.load(1)


def test_a_file_that_vanished_is_no_bad_image(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.png", 128)
    source = open_source(f"folder:{tmp_path}", on_bad_image="skip")
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png cannot be read: No such file"):
        source.load(1)


@pytest.mark.parametrize("gray_max, levels", [(65535, 16), (4095, 256)])
def test_levels_of_12_bits(tmp_path, said, gray_max, levels):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = open_source(f"folder:{tmp_path}", Decoding(gray_max=gray_max))[0]
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values * (255 / gray_max)))
    assert len(np.unique(pixels)) in (levels, levels + 1)
    assert f"gray_max={gray_max} makes {levels} of 256 levels" in said()
    assert ("Is it 4095?" in said()) == (levels == 16)
