"""Sources: every kind of image arrives as Pillow has it, upright; mistakes get a sentence."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from data_samples import (
    PHOTOGRAPHS,
    ROOT,
    SMALL_IMAGES,
    photographs as write_photographs,
    prepare_tfds,
    small_images as write_small_images,
)
from PIL import Image, ImageOps, features
from sklearn.datasets import load_digits

from resa_jax.data.check import check_source, long_tail_sizes
from resa_jax.data.decode import BadImageError, Decoding, decode_image
from resa_jax.data.folder import list_folder
from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source
from resa_jax.errors import UserError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def any_photographs(request, tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("any"), collection=request.param)


@pytest.fixture(scope="module")
def photograph(photographs):
    """One photograph, 96 pixels wide, not square, without symmetry."""
    path = min(photographs.rglob("*.JPEG"))
    return Image.open(path).convert("RGB").resize((96, 60))


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    return write_small_images(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=SMALL_IMAGES)
def any_small_images(request, tmp_path_factory):
    return write_small_images(tmp_path_factory.mktemp("any"), collection=request.param)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def make_images(root, *names, size=(20, 10)):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 0, 0)).save(path, "PNG")


def test_digits():
    source, digits = open_source("digits"), load_digits()
    assert len(source) == check_source("digits") == 1797 and source.canvas == (8, 8, 3)
    np.testing.assert_array_equal(source.labels, digits.target)
    assert source.class_names == tuple("0123456789") and source.paths is None
    expected = np.rint(digits.images[5] * 255 / 16)
    np.testing.assert_array_equal(source[5], np.repeat(expected[..., None], 3, axis=2))


def test_a_folder_of_small_images_is_decoded_at_the_start(any_small_images):
    source = open_source(f"folder:{any_small_images}")
    assert source.in_memory and source.canvas == (32, 32, 3) and len(source) == 40
    assert source.class_names == tuple(sorted(path.name for path in any_small_images.iterdir()))
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(10), 4))
    for index, path in enumerate(source.paths):
        np.testing.assert_array_equal(source[index], Image.open(path).convert("RGB"))


def test_a_folder_of_photographs_is_decoded_on_access(any_photographs):
    source = open_source(f"folder:{any_photographs}")
    assert not source.in_memory and source.canvas == (512, 768, 3)
    assert len(source.class_names) == 24  # the synsets, not the folder `train` around all of them
    unchanged = 0
    for index, path in enumerate(source.paths):
        image = Image.open(path).convert("RGB")
        assert min(source[index].shape[:2]) <= 512 and max(source[index].shape) <= 768
        if min(image.size) <= 512 and max(image.size) <= 768:
            unchanged += 1
            np.testing.assert_array_equal(source[index], image)
    assert unchanged > 10


@pytest.mark.parametrize("canvas", [300, 128])
def test_reduction_keeps_the_shape_and_the_picture(any_photographs, canvas):
    source = open_source(f"folder:{any_photographs}", Decoding(canvas))
    errors = []
    for index, path in enumerate(source.paths):
        image = Image.open(path).convert("RGB")
        scale = min(1, canvas / min(image.size), 1.5 * canvas / max(image.size))
        size = tuple(max(1, round(side * scale)) for side in image.size)
        assert source[index].shape == (size[1], size[0], 3)
        exact = np.asarray(image.resize(size, Image.Resampling.HAMMING), np.float64)
        errors.append(np.abs(source[index] - exact).mean())
    # The decoder's own scaling is another, sharper filter.
    assert max(errors) < 7 and np.mean(errors) < 3


def test_reduction_is_the_same_on_both_ways_of_decoding(any_photographs):
    for path in sorted(any_photographs.rglob("*.JPEG"))[:8]:
        data = path.read_bytes()
        slow = data + b"tiff:Orientation"  # what follows the image's end only bars the fast way
        for canvas in (512, 200, 40):
            np.testing.assert_array_equal(
                decode_image(data, Decoding(canvas)), decode_image(slow, Decoding(canvas))
            )


def color_kinds():
    return {
        "gray jpeg": lambda x: encode(x.convert("L"), "JPEG"),
        "cmyk jpeg": lambda x: encode(x.convert("CMYK"), "JPEG"),
        "progressive jpeg": lambda x: encode(x, "JPEG", progressive=True),
        "rgb png": lambda x: encode(x, "PNG"),
        "gray png": lambda x: encode(x.convert("L"), "PNG"),
        "gray and alpha png": lambda x: encode(x.convert("LA"), "PNG"),
        "rgba png": lambda x: encode(x.convert("RGBA"), "PNG"),
        "one bit png": lambda x: encode(x.convert("1"), "PNG"),
        "palette png": lambda x: encode(x.quantize(64), "PNG"),
        "gif": lambda x: encode(x.quantize(64), "GIF"),
        "bmp": lambda x: encode(x, "BMP"),
        "ppm": lambda x: encode(x, "PPM"),
        "pgm": lambda x: encode(x.convert("L"), "PPM"),
        "tiff": lambda x: encode(x, "TIFF"),
        "cmyk tiff": lambda x: encode(x.convert("CMYK"), "TIFF"),
        "webp": lambda x: encode(x, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", color_kinds())
def test_kinds_of_images_arrive_as_pillow_converts_them(photograph, kind):
    if kind == "webp" and not features.check("webp"):
        pytest.skip("this Pillow reads no WebP")
    data = color_kinds()[kind](photograph)
    image = decode_image(data, Decoding(512))
    assert image.dtype == np.uint8 and image.shape == (60, 96, 3)
    np.testing.assert_array_equal(image, pillow(data))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255] * 20)])
def test_palette_with_transparency(photograph, transparency):
    palette = photograph.quantize(60)
    data = encode(palette, "PNG", transparency=transparency)
    np.testing.assert_array_equal(decode_image(data, Decoding(512)), palette.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = decode_image(encode(Image.fromarray(values), kind), Decoding(512))
    np.testing.assert_array_equal(image[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientations(photograph, kind, orientation):
    if not features.check("webp") and kind == "WEBP":
        pytest.skip("this Pillow reads no WebP")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(photograph, kind, exif=exif, **options)
    image = decode_image(data, Decoding(512))
    assert image.shape == ((96, 60, 3) if orientation > 4 else (60, 96, 3))
    np.testing.assert_array_equal(image, pillow(data))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["garbage", "cut", "without", "xmp", "both", "comment first"])
def test_orientations_of_jpegs_are_pillows(photograph, kind):
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    if kind in ("both", "comment first"):
        exif[0x0112] = 8
    options = {"xmp": XMP} if kind in ("xmp", "both") else {}
    if kind == "comment first":
        options = {"comment": b"Exif\x00\x00 is not here"}
    block = {"garbage": b"Exif\x00\x00garbage", "cut": exif.tobytes()[:17]}.get(kind, exif)
    data = encode(photograph, "JPEG", exif=block, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Corrupt EXIF data")  # pytest puts ours away
        image = decode_image(data, Decoding(512))
        expected = np.asarray(Image.open(io.BytesIO(data))) if kind == "cut" else pillow(data)
    assert image.shape == ((96, 60, 3) if kind in ("xmp", "both", "comment first") else (60, 96, 3))
    np.testing.assert_array_equal(image, expected)


def test_16_bit_images_and_rotations_go_together():
    values = (np.arange(6, dtype=np.uint16) * 257 * 40).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encode(Image.fromarray(values), "PNG", exif=exif), Decoding(512))
    np.testing.assert_array_equal(image[..., 0], np.rot90(values // 257, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8])
def test_damaged_files_are_errors(photograph, kind, kept):
    if not features.check("webp") and kind == "WEBP":
        pytest.skip("this Pillow reads no WebP")
    data = encode(photograph, kind)
    with pytest.raises(BadImageError, match=r"\w"):
        decode_image(data[: int(len(data) * kept)], Decoding(512))


@pytest.fixture
def damaged(tmp_path, photograph):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph.save(tmp_path / name)
    (tmp_path / "cat/a.png").write_bytes(b"no image")
    return tmp_path


def test_a_damaged_small_image_is_met_at_the_start(damaged):
    with pytest.raises(UserError, match=r"cat/a\.png cannot be decoded.*'skip'"):
        open_source(f"folder:{damaged}")
    source = open_source(f"folder:{damaged}", on_bad_image="skip")
    assert len(source) == 2 and source.num_bad == 1
    assert [path.rpartition("/")[2] for path in source.paths] == ["b.png", "c.png"]
    np.testing.assert_array_equal(source.labels, [0, 1])


def test_a_damaged_large_image_is_met_on_access(damaged):
    for path in damaged.rglob("[bc].png"):
        Image.open(path).resize((200, 100)).save(path)
    with pytest.raises(UserError, match=r"cat/a\.png cannot be decoded"):
        open_source(f"folder:{damaged}")[0]
    source = open_source(f"folder:{damaged}", on_bad_image="skip")
    image, label, index, num_bad = source.load(0)
    assert (label, index, num_bad, image.shape) == (0, 1, 1, (100, 200, 3))
    (damaged / "dog/c.png").write_bytes(b"")
    assert source.load(2)[1:] == (0, 1, 2)  # after the last image, the first


@pytest.mark.parametrize("first", [b"no image", None])
def test_a_folder_of_damaged_images_only(damaged, photograph, first):
    for path in damaged.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="None of the 3 images can be decoded"):
        open_source(f"folder:{damaged}", on_bad_image="skip")


def test_layouts_of_folders(tmp_path):
    make_images(tmp_path / "flat", "b.PNG", "a.png", ".hidden.png", "c.txt")
    folder = list_folder(str(tmp_path / "flat"))
    assert folder.names == ["a.png", "b.PNG"] and folder.labels is None

    make_images(tmp_path / "classes", "dog/x/2.png", "dog/1.png", "cat/y/z/1.png", ".git/1.png")
    folder = list_folder(str(tmp_path / "classes"))
    assert folder.names == ["cat/y/z/1.png", "dog/1.png", "dog/x/2.png"]
    assert folder.labels == [0, 1, 1] and folder.class_names == ("cat", "dog")

    make_images(tmp_path / "deeper", "train/dog/1.png", "train/cat/1.png")
    folder = list_folder(str(tmp_path / "deeper"))
    assert folder.labels == [0, 1] and folder.class_names == ("cat", "dog")

    for names in (("photos/1.png", "photos/2.png"), ("1.png", "cat/1.png", "dog/1.png")):
        make_images(tmp_path / names[0] / "root", *names)
        assert list_folder(str(tmp_path / names[0] / "root")).labels is None


def test_links_are_followed_but_not_in_circles(tmp_path):
    make_images(tmp_path / "images", "cat/1.png", "dog/1.png")
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset/cat").symlink_to(tmp_path / "images/cat")
    (tmp_path / "subset/dog").symlink_to(tmp_path / "images/dog")
    (tmp_path / "images/dog/back").symlink_to(tmp_path / "images")
    folder = list_folder(str(tmp_path / "subset"))
    assert folder.class_names == ("cat", "dog") and "dog/1.png" in folder.names
    assert list_folder(str(tmp_path / "images")).names == ["cat/1.png", "dog/1.png"]


def test_images_of_several_sizes_share_a_canvas(tmp_path):
    make_images(tmp_path / "a", "1.png", size=(20, 10))
    make_images(tmp_path / "a", "2.png", size=(8, 30))
    source = open_source(f"folder:{tmp_path / 'a'}")
    assert source.canvas == (30, 20, 3) and source.labels is None
    assert source[0].shape == (10, 20, 3) and source[1].shape == (30, 8, 3)


def test_npz(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1, 1, 0]))
    source = open_source(f"npz:{tmp_path / 'a.npz'}")
    assert source.canvas == (6, 7, 3) and source.class_names == ("0", "1", "2")
    assert check_source(f"npz:{tmp_path / 'a.npz'}") == len(source) == 5
    np.testing.assert_array_equal(source.labels, [2, 0, 1, 1, 0])
    np.testing.assert_array_equal(source[3], images[3])
    for gray in (images[..., 0], images[..., :1]):
        np.savez_compressed(tmp_path / "b.npz", images=gray)
        source = open_source(f"npz:{tmp_path / 'b.npz'}")
        assert source.labels is None
        np.testing.assert_array_equal(source[1], np.repeat(images[1, ..., :1], 3, axis=2))
    source = open_source(f"npz:{tmp_path / 'a.npz'}", Decoding(4))
    assert source[0].shape == source.canvas == (4, 5, 3)


IMAGES = np.zeros((4, 6, 6, 3), np.uint8)


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"x": IMAGES}, "needs an array `images`, and holds x"),
        ({"images": IMAGES / 255}, "must be uint8 .* it is '<f8' of shape"),
        ({"images": IMAGES[..., :2]}, r"of shape \(4, 6, 6, 2\)"),
        ({"images": IMAGES[0, 0]}, r"of shape \(6, 3\)"),
        ({"images": IMAGES[:0]}, r"of shape \(0, 6, 6, 3\)"),
        ({"images": np.array([{}])}, "must be uint8"),
        ({"images": IMAGES, "labels": np.arange(3)}, r"integers of shape \(4,\), one for each"),
        ({"images": IMAGES, "labels": np.ones(4)}, "must be integers"),
    ],
)
def test_npz_files_of_the_wrong_form(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    for look in (check_source, open_source):
        with pytest.raises(UserError, match=sentence):
            look(f"npz:{tmp_path / 'a.npz'}")


def test_mistakes_get_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "negative.npz", images=IMAGES, labels=np.array([0, 1, -1, 0]))
    for name, sentence in {
        "imagenet": "must be one of digits, folder:PATH, list:FILE, npz:FILE, tfds:NAME, hf:NAME",
        "digits:2": "must be one of",
        "folder:": "must be one of",
        str(tmp_path): f"Did you mean folder:{tmp_path}",
        f"folder:{tmp_path}/nowhere": "does not exist",
        f"folder:{tmp_path}/a.npz": "is not a folder",
        f"folder:{tmp_path}/empty": r"holds no image.*\.jpg, \.jpeg, .*\.png",
        f"npz:{tmp_path}/nowhere.npz": "no such file",
        f"npz:{tmp_path}/a.npz": "not a file that numpy.savez wrote",
        "tfds:a b": "no name of a TFDS data set",
    }.items():
        for look in (check_source, open_source):
            with pytest.raises(UserError, match=sentence):
                look(name)
    with pytest.raises(UserError, match="must not be negative"):
        open_source(f"npz:{tmp_path / 'negative.npz'}")
    with pytest.raises(UserError, match="on_bad_image='ignore' must be 'error' or 'skip'"):
        open_source("digits", on_bad_image="ignore")


def test_looking_for_mistakes_imports_nothing_heavy(small_images):
    code = (
        "import sys\nfrom resa_jax.data.check import check_source\n"
        f"assert check_source('folder:{small_images}') == 40\n"
        "print({'numpy', 'jax', 'grain', 'sklearn', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_chosen_classes_are_numbered_in_the_files_order(small_images, tmp_path):
    chosen = tmp_path / "classes.txt"
    chosen.write_text("# two of ten\nflower3 its petals\n\nchina1\n")
    source = open_source(f"folder:{small_images}", classes=str(chosen))
    assert source.class_names == ("flower3", "china1")
    assert check_source(f"folder:{small_images}", classes=str(chosen)) == len(source) == 8
    for path, label in zip(source.paths, source.labels, strict=True):
        assert source.class_names[label] in path
    chosen.write_text("flower3\nunicorn\n")
    for look in (check_source, open_source):
        with pytest.raises(UserError, match="has no class 'unicorn'"):
            look(f"folder:{small_images}", classes=str(chosen))
        with pytest.raises(UserError, match="there is no such file"):
            look(f"folder:{small_images}", classes=str(tmp_path / "nowhere"))
    chosen.write_text("3\n1\n")
    assert set(open_source("digits", classes=str(chosen)).labels) == {0, 1}


def test_long_tail():
    # CIFAR-100-LT with an imbalance of 20 has 15,907 images.
    sizes = long_tail_sizes([500] * 100, 20)
    assert sum(sizes) == 15907 and sizes[0] == 500 and sizes[-1] == 25
    digits, source = open_source("digits"), open_source("digits", long_tail=10)
    counts = np.bincount(source.labels)
    assert counts[0] == np.bincount(digits.labels).min() and counts[-1] == counts[0] // 10
    assert (np.diff(counts) < 0).all()
    for label in (0, 7):  # the first of each class
        first = np.flatnonzero(digits.labels == label)[0]
        np.testing.assert_array_equal(
            source[int(np.flatnonzero(source.labels == label)[0])], digits[int(first)]
        )
    with pytest.raises(UserError, match=r"data\.long_tail=0\.5 must be at least 1"):
        open_source("digits", long_tail=0.5)


def test_long_tail_of_a_folder_is_counted_without_opening_it(small_images):
    name = f"folder:{small_images}"
    assert check_source(name, long_tail=4) == len(open_source(name, long_tail=4)) == 18


@pytest.fixture(scope="module")
def tfds_images(tmp_path_factory, small_images, photographs):
    """Two TFDS data sets, of small and of large images, prepared without TensorFlow."""
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare_tfds(data_dir, "small_images", small_images, (32, 32, 3))
    prepare_tfds(data_dir, "large_images", photographs, (None, None, 3))
    return data_dir


@pytest.fixture
def tfds_dir(tfds_images, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_images))
    return tfds_images


def test_tfds_of_small_images(tfds_dir, small_images):
    source = open_source("tfds:small_images", split="test")
    assert source.in_memory and source.canvas == (32, 32, 3) and len(source.class_names) == 10
    assert check_source("tfds:small_images", split="test") == len(source) == 40
    by_pixels = {
        np.asarray(Image.open(path).convert("RGB")).tobytes(): path.parent.name
        for path in small_images.rglob("*.jpg")
    }
    for index in range(40):
        assert by_pixels[source[index].tobytes()] == source.class_names[source.labels[index]]


def test_tfds_of_large_images(tfds_dir, tmp_path):
    source = open_source("tfds:large_images:1.0.0", Decoding(100))
    assert not source.in_memory and source.canvas == (100, 150, 3) and source.is_labelled
    assert "tensorflow" not in sys.modules
    for index in range(len(source)):
        image, label, _, _ = source.load(index)
        assert min(image.shape[:2]) == 100 or max(image.shape) == 150
        assert label == source.labels[index]
    assert sorted(source.labels) == list(range(24))

    (tmp_path / "classes.txt").write_text(f"{source.class_names[7]}\n{source.class_names[3]}\n")
    chosen = open_source("tfds:large_images", Decoding(100), classes=str(tmp_path / "classes.txt"))
    assert len(chosen) == 2 and chosen.class_names == (source.class_names[7], source.class_names[3])
    for index in range(2):
        image, label, _, _ = chosen.load(index)
        original = int(np.flatnonzero(source.labels == (7, 3)[label])[0])
        np.testing.assert_array_equal(image, source[original])
        assert chosen.labels[index] == label


def test_tfds_mistakes(tfds_dir):
    with pytest.raises(UserError, match=r"tfds:large_images has no split 'validation'; it has tr"):
        check_source("tfds:large_images", split="validation")
    with pytest.raises(UserError, match=r"tfds:cifar10 has not been prepared.*download_and_prepa"):
        check_source("tfds:cifar10")
    assert check_source("tfds:small_images", split="train[:10%]") is None


def test_threads_do_not_change_the_batches_of_tfds(tfds_dir):
    def collect(workers):
        source = open_source("tfds:large_images", Decoding(64))
        options = {"batch_size": 4, "seed": 0, "start_step": 0, "num_steps": 3}
        with batches(source, workers=workers, **options) as iterator:
            return list(iterator)

    for one, other in zip(collect(1), collect(3), strict=True):
        for name in ("images", "sizes", "labels", "indices"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here"
)
def test_tfds_run_without_tensorflow(tfds_dir, tmp_path):
    command = [
        *(sys.executable, "-m", "resa_jax.main", "--config=configs/digits.py:smoke"),
        *("--config.data.source=tfds:large_images", "--config.data.canvas=64"),
        *("--config.encoder.name=vit_s16", "--config.encoder.patch_size=4"),
        *("--config.encoder.width=64", "--config.encoder.depth=1"),
        f"--workdir={tmp_path}",
    ]
    one_device = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run(command, cwd=ROOT, env=one_device, check=True, capture_output=True)
    records = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in records if "loss" in line]
    assert len(losses) == 3 and np.isfinite(losses).all()
