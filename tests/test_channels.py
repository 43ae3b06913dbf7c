"""Images of other channels than three, and of 16 bits: kept, trained on, evaluated, exported."""

import subprocess
import sys

import numpy as np
import pytest
from evaluation_run import make_run
from jax import export
from PIL import Image

import resa_jax
from resa_jax.config import load_config
from resa_jax.data.decode import BadImageError, decode_image
from resa_jax.data.decoding import Decoding
from resa_jax.data.images import visible
from resa_jax.data.sources import open_source
from resa_jax.data.statistics import channel_statistics
from resa_jax.errors import UserError
from resa_jax.serving import export_stablehlo
from resa_jax.training.initialize import _with_channels


RNG = np.random.default_rng(0)


def saved(path, pages, kind="TIFF"):
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, kind, save_all=bool(others), append_images=others)
    return path.read_bytes()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_pages_are_channels(tmp_path, count, bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    pages = RNG.integers(np.iinfo(dtype).max, size=(count, 9, 13), dtype=dtype)
    pixels = decode_image(saved(tmp_path / "a.tif", pages), Decoding(channels=count, bits=bits))
    np.testing.assert_array_equal(pixels, pages.transpose(1, 2, 0))


@pytest.mark.parametrize("channels, kind", [(2, "PNG"), (4, "PNG"), (1, "PNG"), (1, "JPEG")])
def test_bands_are_channels(tmp_path, channels, kind):
    pixels = RNG.integers(256, size=(9, 13, channels), dtype=np.uint8)
    data = saved(tmp_path / "a", [pixels if channels > 1 else pixels[..., 0]], kind)
    got = decode_image(data, Decoding(channels=channels))
    expected = np.asarray(Image.open(tmp_path / "a")).reshape(9, 13, channels)
    np.testing.assert_array_equal(got, expected)


def test_12_bits_keep_their_levels_and_8_bits_fill_the_range(tmp_path):
    how = Decoding(channels=1, bits=16, gray_max=4095)
    values = RNG.integers(4096, size=(8, 8)).astype(np.uint16)
    got = decode_image(saved(tmp_path / "a.png", [values], "PNG"), how)
    np.testing.assert_array_equal(got[..., 0], values)
    small = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    got = decode_image(saved(tmp_path / "b.png", [small], "PNG"), how)
    np.testing.assert_array_equal(got[..., 0], np.rint(small * (4095 / 255)))


def test_reduction_of_16_bits_is_pillows_in_floating_point(tmp_path):
    values = RNG.integers(65_536, size=(90, 60)).astype(np.uint16)
    got = decode_image(
        saved(tmp_path / "a.png", [values], "PNG"), Decoding(30, channels=1, bits=16)
    )
    exact = Image.fromarray(values.astype(np.float32)).resize((30, 45), Image.Resampling.HAMMING)
    assert got.shape == (45, 30, 1)
    assert np.abs(got[..., 0] - np.asarray(exact)).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_any_channels(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(RNG.integers(256, size=(5, 7, 4), dtype=np.uint8))
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    got = decode_image((tmp_path / "a.png").read_bytes(), Decoding(channels=4))
    np.testing.assert_array_equal(got, upright)


def test_other_channels_are_refused(tmp_path):
    gray = RNG.integers(256, size=(2, 4, 4), dtype=np.uint8)
    data = saved(tmp_path / "a.tif", gray)
    with pytest.raises(BadImageError, match=r"1 channels and 2 pages, neither .* data.channels=5"):
        decode_image(data, Decoding(channels=5))


@pytest.mark.parametrize(
    ("shape", "dtype", "how", "words"),
    [
        ((3, 4, 4, 2), np.uint8, Decoding(), r"uint8 of shape .*data.channels=3"),
        ((3, 4, 4, 2), np.uint8, Decoding(channels=2, bits=16), "uint16"),
        ((3, 4, 4, 2), np.uint16, Decoding(channels=2), "data.bits=8"),
        ((3, 4, 4), np.uint8, Decoding(channels=2), r"shape \[n, height, width, 2\]"),
        ((3, 4, 2), np.uint8, Decoding(channels=2), "is one image"),
    ],
)
def test_arrays_of_other_channels_or_bits_are_refused(tmp_path, shape, dtype, how, words):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, dtype))
    with pytest.raises(UserError, match=words):
        open_source(f"npz:{tmp_path / 'a.npz'}", how)


def test_mean_and_std_are_of_each_channel(tmp_path):
    images = RNG.integers(4096, size=(6, 5, 5, 2)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", images=images)
    how = Decoding(channels=2, bits=16, gray_max=4095)
    mean, std = channel_statistics(open_source(f"npz:{tmp_path / 'a.npz'}", how), how.white)
    np.testing.assert_allclose(mean, (images / 4095).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (images / 4095).std((0, 1, 2)), atol=1e-4)
    with pytest.raises(UserError, match=r"config.data.mean has 3 numbers, and .*channels is 2"):
        load_config("configs/cifar10_resnet18.py", ["data.channels=2"])


@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (2, np.uint16), (5, np.uint8)])
def test_pictures_show_something(channels, dtype):
    shown = visible(RNG.integers(200, size=(4, 4, channels)).astype(dtype))
    assert shown.shape == (4, 4, 3) and shown.dtype == np.uint8 and shown.max() > 100


def test_the_first_layer_adapts():
    kernel = RNG.normal(size=(3, 3, 3, 4))
    for channels in (1, 2, 3, 5):
        old = {"conv1": {"kernel": np.zeros((3, 3, channels, 4))}}
        new = _with_channels({"conv1": {"kernel": kernel}}, old)["conv1"]["kernel"]
        # One value in all channels gives what it gave before.
        if channels % 3 in (0, 1) and channels < 4:
            np.testing.assert_allclose(new.sum(2), kernel.sum(2))
        for channel in range(channels):
            expected = kernel.sum(2) if channels == 1 else kernel[:, :, channel % 3] * 3 / channels
            np.testing.assert_allclose(new[:, :, channel], expected)


@pytest.fixture(scope="module", params=[(1, 8), (2, 16)])
def run(request, tmp_path_factory):
    """A run on images of other channels and bits, and what it was made on."""
    channels, bits = request.param
    how = Decoding(channels=channels, bits=bits, gray_max=4095 if bits == 16 else 65_535)
    folder = tmp_path_factory.mktemp("channels")
    digits = open_source("digits")
    values = np.stack([digits[row][..., 0] for row in range(120)]).astype(np.float64) / 255
    images = np.stack([values * how.white / (n + 1) for n in range(channels)], axis=3)
    np.savez(folder / "a.npz", images=images.astype(how.dtype), labels=digits.labels[:120])
    source, numbers = f"npz:{folder / 'a.npz'}", ",".join(["0.3"] * channels) + ","
    fields = [f"data.{name}={getattr(how, name)}" for name in ("channels", "bits", "gray_max")]
    fields += [f"data.source={source}", f"data.mean=({numbers})", f"data.std=({numbers})"]
    return make_run(folder / "run", *fields), source, how, fields


def test_a_run_of_other_channels(run):
    workdir, source, how, _ = run
    encoder = resa_jax.load_encoder(workdir)
    assert (encoder.spec.channels, encoder.spec.decoding.dtype) == (how.channels, how.dtype)
    images = open_source(source, how).images.pixels
    expected = np.asarray(encoder(images))
    np.testing.assert_allclose(resa_jax.encode(encoder, source)["encoding"], expected, atol=1e-5)
    normalised = (images / how.white - np.array(encoder.spec.mean)) / np.array(encoder.spec.std)
    np.testing.assert_allclose(encoder(normalised.astype(np.float32)), expected, atol=1e-5)
    with pytest.raises(UserError, match=f"not \\[n, h, w, {how.channels}\\]"):
        encoder(images[..., :1].repeat(3, axis=3))
    exported = resa_jax.load_encoder(workdir / "encoder")
    np.testing.assert_array_equal(exported(images), expected)
    call = export.deserialize(bytearray(export_stablehlo(exported))).call
    np.testing.assert_allclose(call(images[:3]), expected[:3], atol=1e-5)
    scores = resa_jax.score(workdir, "knn-cifar", source)
    assert 0 <= scores["results"]["k5"]["top1"] <= 100


@pytest.mark.slow
def test_a_run_of_other_channels_reports_and_converts(run, tmp_path):
    workdir, source, how, _ = run
    if how.channels == 1:
        pytest.skip("the same ways as with two channels")
    run_command("report", f"--workdir={workdir}", f"--output={tmp_path / 'a.html'}")
    assert (tmp_path / "a.html").stat().st_size > 10_000
    weights = tmp_path / "a.safetensors"
    run_command("convert", f"--input={workdir}", f"--output={weights}")
    assert resa_jax.load_encoder(weights, arch="resnet18_small").spec.channels == how.channels
    said = run_command(
        *("embed", f"--encoder={workdir}", f"--source={source}", "--groups=3"),
        f"--output={tmp_path / 'e.npz'}",
    )
    assert "groups" in said


@pytest.mark.slow
def test_training_on_other_channels(run, tmp_path):
    """A first layer of three channels is adapted, and the encoder takes the images of the run."""
    _, source, how, fields = run
    if how.channels == 1:
        pytest.skip("the same ways as with two channels")
    color = make_run(tmp_path / "color")
    config = load_config("configs/digits.py:smoke", [*fields, f"init_from={color / 'encoder'}"])
    resa_jax.train(config, tmp_path / "run")
    images = open_source(source, how).images.pixels[:4]
    assert np.isfinite(resa_jax.load_encoder(tmp_path / "run" / "encoder")(images)).all()


def run_command(name, *arguments):
    command = [sys.executable, "-m", f"resa_jax.{name}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout
