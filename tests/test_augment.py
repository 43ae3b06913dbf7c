"""The views against Pillow on real images, and their numbers against their distributions."""

import colorsys
import functools
import itertools
import math

import data_samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from resa_jax.data import color, resample as resampling
from resa_jax.data.augment import (
    augment as augment_eagerly,
    center_boxes,
    center_crop,
    jitter_numbers,
    normalize,
    random_boxes as random_boxes_eagerly,
)
from resa_jax.data.resample import resample, resampling_matrix
from resa_jax.data.sources import open_source
from resa_jax.data.view import View as AnyView


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
WEAK_VIEW = {
    "jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": 0.0,
    "solarize_probability": 0.0,
}
STRONG_VIEW = {
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "solarize_probability": 0.2,
}
PLAIN = WEAK_VIEW | {"flip_probability": 0.0}
augment = jax.jit(augment_eagerly, static_argnames=("views", "mean", "std", "white"))
random_boxes = jax.jit(random_boxes_eagerly, static_argnames=("scale", "ratio"))
gaussian_blur = jax.jit(color.gaussian_blur, static_argnames="max_sigma")
color_jitter = jax.jit(color.color_jitter, static_argnames="operators")
ALPHA = 1e-4  # of each statistical test; the seeds are fixed, so none of them is flaky


def View(size, **fields):
    """A view that is strong where nothing else is said."""
    return AnyView(size=size, **(STRONG_VIEW | fields))


def read(folder):
    source = open_source(f"folder:{folder}")
    return [source[index] for index in range(len(source))]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return read(data_samples.photographs(tmp_path_factory.mktemp("photographs"), count=8))


@pytest.fixture(scope="module", params=data_samples.PHOTOGRAPHS)
def any_photographs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    return read(data_samples.photographs(folder, count=8, collection=request.param))


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    return read(data_samples.small_images(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module", params=data_samples.SMALL_IMAGES)
def any_small_images(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    return read(data_samples.small_images(folder, collection=request.param))


def on_canvas(images, canvas=None):
    canvas = canvas or max(max(image.shape[:2]) for image in images)
    pixels = np.zeros((len(images), canvas, canvas, images[0].shape[2]), images[0].dtype)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return pixels, np.array([[*image.shape[:2], 0] for image in images], np.int32)


def planes(images):
    return jnp.asarray(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32))


def pixels(array):
    return np.asarray(array).transpose(0, 2, 3, 1)


def mean_error(got, expected):
    return np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).mean()


@functools.partial(jax.jit, static_argnames=("size", "interpolation"))
def resized_crop(images, boxes, size, interpolation):
    rows, columns = (
        resampling_matrix(
            boxes[:, axis],
            boxes[:, 2 + axis],
            size=size,
            canvas=images.shape[1],
            interpolation=interpolation,
        )
        for axis in (0, 1)
    )
    return resample(images.transpose(0, 3, 1, 2).astype(jnp.float32), rows, columns)


def pillow_crop(image, box, size, interpolation):
    top, left, height, width = (int(side) for side in box)
    cropped = Image.fromarray(image).crop((left, top, left + width, top + height))
    return np.asarray(cropped.resize((size, size), FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size, scale", [(224, (0.2, 1.0)), (96, (0.05, 0.32)), (224, (0.01, 0.05))]
)
def test_resized_crops_of_photographs_equal_pillow(any_photographs, interpolation, size, scale):
    images, sizes = on_canvas(any_photographs)
    boxes = np.asarray(random_boxes(jax.random.key(1), sizes[:, :2], scale, (3 / 4, 4 / 3)))
    assert (boxes[:, 2:].max() <= size) == (scale[1] < 0.1)  # the last scale is all enlargement
    got = pixels(resized_crop(images, boxes, size, interpolation))
    check_crops(got, any_photographs, boxes, size, interpolation)


def check_crops(got, images, boxes, size, interpolation):
    errors = []
    for result, image, box in zip(got, images, boxes, strict=True):
        expected = pillow_crop(image, box, size, interpolation)
        errors.append(mean_error(result, expected))
        assert (np.abs(result - expected) > 1).mean() < 1e-3
    # Pillow's fixed point rounds ties otherwise: boxes whose scale is a simple fraction have many.
    # Where it starts with the other side, it clips the bicubic filter's overshoots otherwise.
    assert max(errors) < 0.5 and np.mean(errors) < 0.05


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 48])
def test_resized_crops_of_small_images_equal_pillow(any_small_images, interpolation, size):
    images, sizes = on_canvas(any_small_images)
    boxes = np.asarray(random_boxes(jax.random.key(2), sizes[:, :2], (0.2, 1.0), (3 / 4, 4 / 3)))
    got = pixels(resized_crop(images, boxes, size, interpolation))
    check_crops(got, any_small_images, boxes, size, interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resampling_in_bfloat16_parts_is_that_in_float32(photographs, interpolation, monkeypatch):
    """As TPUs and GPUs do it: at most one pixel in 5,000 is another, by one level."""
    images, sizes = on_canvas(photographs)
    options = {"size": 96, "resize": 110, "interpolation": interpolation}
    expected = np.asarray(center_crop(images, sizes, **options))
    taken = []
    split = lambda *arguments: taken.append(1) or resampling._split(*arguments)
    monkeypatch.setattr(resampling, "_float32_product", split)
    got = np.asarray(center_crop(images, sizes, **options))
    assert len(taken) == 2
    difference = np.abs(got - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 2e-4


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_multiply_in_bfloat16_and_gather_nothing(small_images, platform):
    images, sizes = on_canvas(small_images)
    views = (View(16, **WEAK_VIEW), View(16))
    program = jax.jit(lambda key, *batch: augment_eagerly(key, *batch, views, ZEROS, ONES))
    lowered = program.trace(jax.random.key(0), images, sizes).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 2 * 2 * 3
    assert all("bf16" in line and "HIGHEST" not in line for line in products)
    assert "stablehlo.gather" not in text


def test_pixels_outside_of_the_box_do_not_matter(photographs):
    images, _ = on_canvas(photographs[:1])
    box = np.array([[30, 40, 100, 90]], np.int32)
    inside = np.zeros_like(images)
    inside[:, 30:130, 40:130] = images[:, 30:130, 40:130]
    one, other = (resized_crop(x, box, 64, "bicubic") for x in (images, inside))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_crop_equals_pillow(photographs, interpolation):
    images, sizes = on_canvas(photographs)
    got = center_crop(images, sizes, size=224, resize=256, interpolation=interpolation)
    for result, image in zip(got, photographs, strict=True):
        height, width = image.shape[:2]
        short = min(height, width)
        resized = Image.fromarray(image).resize(
            (int(256 * width / short), int(256 * height / short)), FILTERS[interpolation]
        )
        left, top = (round((side - 224) / 2) for side in resized.size)
        expected = resized.crop((left, top, left + 224, top + 224))
        assert mean_error(result, expected) < 0.01


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_crop_keeps_the_pixels_of_an_image_of_the_right_size(small_images, interpolation):
    images, sizes = on_canvas(small_images, canvas=40)
    got = center_crop(images, sizes, size=32, resize=32, interpolation=interpolation)
    np.testing.assert_array_equal(got, np.stack(small_images))


def test_center_view_is_the_largest_centred_square(photographs):
    images, sizes = on_canvas(photographs)
    boxes = np.asarray(center_boxes(sizes[:, :2]))
    view = View(64, crop="center", **PLAIN)
    (got,) = augment(jax.random.key(0), images, sizes, (view,), ZEROS, ONES)
    for result, image, box in zip(got, photographs, boxes, strict=True):
        height, width = image.shape[:2]
        side = min(height, width)
        assert tuple(box) == ((height - side) // 2, (width - side) // 2, side, side)
        assert mean_error(result * 255, pillow_crop(image, box, 64, "bilinear")) < 0.01


def squares(images, size=64):
    return [np.asarray(Image.fromarray(image).resize((size, size))) for image in images]


def enhance(kind):
    def operator(image, factor):
        return np.asarray(kind(Image.fromarray(image)).enhance(factor))

    return operator


def pillow_hue(image, shift):
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int32) + int(shift * 255)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


JITTERS = {
    "brightness": (color.adjust_brightness, enhance(ImageEnhance.Brightness), 1.0),
    "contrast": (color.adjust_contrast, enhance(ImageEnhance.Contrast), 1.0),
    "saturation": (color.adjust_saturation, enhance(ImageEnhance.Color), 1.0),
    "hue": (color.adjust_hue, pillow_hue, 0.0),
}


@pytest.mark.parametrize("name", JITTERS)
def test_jitter_operators_equal_pillow(photographs, small_images, name):
    operator, reference, neutral = JITTERS[name]
    width = 0.5 if name == "hue" else 0.8
    for images in (squares(photographs), small_images):
        factors = np.linspace(neutral - width, neutral + width, len(images)).astype(np.float32)
        got = pixels(jax.jit(operator)(planes(images), factors))
        expected = np.stack(
            [reference(*pair) for pair in zip(images, factors.tolist(), strict=True)]
        )
        # The requirement on the other operators is to state the error: below 0.01 of 255. A blend
        # that hits a whole number up to float32's rounding may be cut off to its neighbour.
        assert mean_error(got, expected) < 0.01


def test_hue_of_every_kind_of_color_equals_pillow():
    levels = np.array([0, 1, 37, 127, 128, 200, 254, 255], np.uint8)
    colors = np.array(list(itertools.product(levels, repeat=3)), np.uint8).reshape(1, 64, 8, 3)
    hue = jax.jit(color.adjust_hue)
    for shift in (-0.5, -0.1, -0.003, 0.0, 0.05, 0.5):
        got = pixels(hue(planes(colors), jnp.array([shift])))
        assert np.abs(got[0] - pillow_hue(colors[0], shift)).max() <= 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
def test_color_jitter_applies_the_operators_in_their_order(small_images, order):
    images = small_images[:8]
    operators, references, _ = zip(*JITTERS.values(), strict=True)
    factors = np.array([1.35, 0.7, 1.2, 0.08], np.float32)
    got = color_jitter(
        planes(images),
        operators,
        jnp.tile(factors[:, None], (1, len(images))),
        jnp.tile(jnp.array(order), (len(images), 1)),
    )
    for result, image in zip(pixels(got), images, strict=True):
        for k in order:
            image = references[k](image, float(factors[k]))
        assert mean_error(result, image) < 0.05


def test_color_jitter_takes_each_images_own_order(small_images):
    images = small_images[:2]
    operators = (color.adjust_contrast, color.adjust_brightness)
    factors = jnp.array([[0.5, 0.5], [1.9, 1.9]])
    both = color_jitter(planes(images), operators, factors, jnp.array([[0, 1], [1, 0]]))
    for row, order in enumerate(([0, 1], [1, 0])):
        alone = color_jitter(
            planes(images[row : row + 1]), operators, factors[:, :1], jnp.array([order])
        )
        np.testing.assert_array_equal(both[row : row + 1], alone)


def test_grayscale_and_solarize_equal_pillow(photographs):
    images = squares(photographs)
    gray = pixels(color.grayscale(planes(images)))
    solarized = pixels(color.solarize(planes(images)))
    for image, one, other in zip(images, gray, solarized, strict=True):
        image = Image.fromarray(image)
        np.testing.assert_array_equal(one, image.convert("L").convert("RGB"))
        np.testing.assert_array_equal(other, ImageOps.solarize(image, threshold=128))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.37, 2.0, 7.3])
def test_blur_equals_pillow(photographs, small_images, sigma):
    for images in (squares(photographs, size=112), small_images):
        sigmas = jnp.full(len(images), sigma)
        got = pixels(gaussian_blur(planes(images), sigmas, max_sigma=max(sigma, 2.0)))
        filter_ = ImageFilter.GaussianBlur(sigma)
        expected = np.stack([np.asarray(Image.fromarray(i).filter(filter_)) for i in images])
        np.testing.assert_array_equal(got, expected)


def test_sigmas_of_a_batch_do_not_mix(small_images):
    sigmas = jnp.linspace(0.1, 2.0, len(small_images))
    together = gaussian_blur(planes(small_images), sigmas, max_sigma=2.0)
    alone = gaussian_blur(planes(small_images[7:8]), sigmas[7:8], max_sigma=2.0)
    np.testing.assert_array_equal(together[7:8], alone)


def numpy_boxes(generator, count, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, one image at a time."""
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * generator.uniform(*scale)
            aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = generator.integers(0, height - h + 1)
                boxes.append((top, generator.integers(0, width - w + 1), h, w))
                break
        else:
            if width / height < ratio[0]:
                w, h = width, round(width / ratio[0])
            elif width / height > ratio[1]:
                w, h = round(height * ratio[1]), height
            else:
                w, h = width, height
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


@pytest.mark.parametrize(
    "height, width, scale",
    [(375, 500, (0.2, 1.0)), (500, 333, (0.08, 1.0)), (32, 32, (0.2, 1.0)), (60, 200, (0.2, 1.0))],
)
def test_boxes_are_distributed_as_torchvision_has_them(height, width, scale):
    count, ratio = 6000, (3 / 4, 4 / 3)
    expected = numpy_boxes(np.random.default_rng(0), count, height, width, scale, ratio)
    sizes = np.tile(np.array([[height, width]], np.int32), (count, 1))
    got = np.asarray(random_boxes(jax.random.key(0), sizes, scale, ratio))
    assert got.min() >= 0
    assert (got[:, 0] + got[:, 2]).max() <= height and (got[:, 1] + got[:, 3]).max() <= width
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 0] + box[:, 2],
    ):
        result = scipy.stats.ks_2samp(statistic(got), statistic(expected))
        assert result.pvalue > ALPHA


@pytest.mark.parametrize("height, width", [(20, 500), (500, 20), (31, 400)])
def test_boxes_of_extreme_images_fall_back_to_the_centre(height, width):
    sizes = np.tile(np.array([[height, width]], np.int32), (64, 1))
    got = np.asarray(random_boxes(jax.random.key(3), sizes, (0.8, 1.0), (3 / 4, 4 / 3)))
    expected = numpy_boxes(np.random.default_rng(0), 64, height, width, (0.8, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got, axis=0)) == 1


def test_one_batch_holds_images_of_any_size(photographs):
    images, sizes = on_canvas([*photographs[:3], np.full((1, 1, 3), 77, np.uint8)], canvas=768)
    view = View(32, **PLAIN)
    (got,) = augment(jax.random.key(0), images, sizes, (view,), ZEROS, ONES)
    np.testing.assert_allclose(got[-1], 77 / 255, rtol=1e-6)


def turned_on_canvas(images):
    """Images that are higher than wide lie turned, on a canvas that is wider than high."""
    lying = [x.swapaxes(0, 1) if x.shape[0] > x.shape[1] else x for x in images]
    height, width = (max(image.shape[axis] for image in lying) for axis in (0, 1))
    pixels, sizes = on_canvas(lying, canvas=max(height, width))
    sizes[:, 2] = [x.shape[0] > x.shape[1] for x in images]
    return pixels[:, :height], sizes


def test_images_that_lie_turned_give_the_same_views(photographs):
    assert sum(x.shape[0] > x.shape[1] for x in photographs) in range(1, len(photographs))
    view = View(96, **PLAIN | {"flip_probability": 0.5, "crop_scale": (0.2, 1.0)})
    center = View(96, crop="center", **PLAIN)
    key = jax.random.key(5)
    for got, expected in zip(
        augment(key, *turned_on_canvas(photographs), (view, center), ZEROS, ONES),
        augment(key, *on_canvas(photographs), (view, center), ZEROS, ONES),
        strict=True,
    ):
        # Which side is resampled first decides how halves are rounded.
        assert np.abs(got - expected).max() < 1.01 / 255
        assert np.abs(got - expected).mean() < 0.1 / 255
    options = {"size": 224, "resize": 256, "interpolation": "bicubic"}
    got = center_crop(*turned_on_canvas(photographs), **options)
    expected = center_crop(*on_canvas(photographs), **options)
    assert np.abs(got - expected).mean() < 0.1


@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (2, np.uint16), (5, np.uint8)])
def test_channels_and_bits_of_any_number(photographs, channels, dtype):
    """Each channel is what Pillow makes of it alone; colour is left as it is."""
    factor = 1 if dtype == np.uint8 else 257
    images = [np.repeat(x[..., :1], channels, axis=2).astype(dtype) * factor for x in photographs]
    images = [x // np.arange(1, channels + 1, dtype=dtype) for x in images]
    pixels, sizes = on_canvas(images)
    white = np.iinfo(dtype).max
    view = View(64, crop="center", **STRONG_VIEW | {"blur_probability": 0.0})
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    (got,) = augment(jax.random.key(0), pixels, sizes, (view,), zeros, ones, int(white))
    boxes = np.asarray(center_boxes(sizes[:, :2]))
    for result, image, (top, left, side, _) in zip(got, images, boxes, strict=True):
        for channel in range(channels):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            crop = plane.crop((left, top, left + side, top + side))
            expected = np.asarray(crop.resize((64, 64), FILTERS[view.interpolation]))
            shown = np.asarray(result[..., channel]) * white
            shown = min((shown, shown[:, ::-1]), key=lambda x: np.abs(x - expected).max())  # a flip
            assert np.abs(shown - expected).max() < 1.01  # two roundings to whole numbers


def test_blur_of_16_bits_is_that_of_8_where_nothing_is_rounded(photographs):
    plane = jnp.asarray(photographs[0][None, :64, :64, :1].transpose(0, 3, 1, 2), jnp.float32)
    sigma = jnp.array([1.3])
    in_bytes = color.gaussian_blur(plane, sigma, max_sigma=2.0)
    finer = color.gaussian_blur(plane * 257, sigma, max_sigma=2.0, white=65_535)
    assert np.abs(finer / 257 - in_bytes).max() < 2
    assert np.abs(finer / 257 - in_bytes).mean() < 0.5


def bounds(probability, count):
    """The central interval of a binomial frequency that all but ALPHA of the runs fall into."""
    low, high = scipy.stats.binom.interval(1 - ALPHA, count, probability)
    return low / count, high / count


def views_of(image, count, view, seed=0):
    images = np.tile(image[None], (count, 1, 1, 1))
    sizes = np.tile(np.array([[*image.shape[:2], 0]], np.int32), (count, 1))
    return np.asarray(
        augment(jax.random.key(seed), images, sizes, (view,), ZEROS, (1 / 255,) * 3)[0]
    )


GRADIENT = np.stack(
    np.broadcast_arrays(np.arange(8)[None, :] * 30, np.arange(8)[:, None] * 20, 90), axis=-1
).astype(np.uint8)


@pytest.mark.parametrize(
    "name, changed",
    [
        ("flip_probability", lambda image: image[:, ::-1]),
        ("grayscale_probability", lambda image: pixels(color.grayscale(planes([image])))[0]),
        ("solarize_probability", lambda image: np.where(image < 128, image, 255 - image)),
    ],
)
@pytest.mark.parametrize("probability", [0.2])
def test_probabilities(name, changed, probability):
    count = 4000
    view = View(8, crop="center", **(PLAIN | {name: probability}))
    got = views_of(GRADIENT, count, view)
    hits = np.isclose(got, changed(GRADIENT)[None], atol=1e-3).all(axis=(1, 2, 3))
    same = np.isclose(got, GRADIENT[None], atol=1e-3).all(axis=(1, 2, 3))
    assert (hits ^ same).all()
    low, high = bounds(probability, count)
    assert low <= hits.mean() <= high


@pytest.mark.parametrize("name", ["jitter_probability", "blur_probability"])
def test_probabilities_of_operators_with_a_strength(name):
    count = 4000
    strengths = {"hue": 0.0, "contrast": 0.0, "saturation": 0.0, "blur_sigma": (1.0, 2.0)}
    got = views_of(GRADIENT, count, View(8, crop="center", **(PLAIN | {name: 0.3} | strengths)))
    changed = ~np.isclose(got, GRADIENT[None], atol=1e-3).all(axis=(1, 2, 3))
    low, high = bounds(0.3, count)
    assert low - 0.01 <= changed.mean() <= high  # a brightness of nearly 1 changes nothing


def test_jitter_numbers_are_uniform_in_their_ranges():
    count = 8000
    view = View(8, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    _, factors, order = jitter_numbers(jax.random.key(5), count, view)
    for row, (low, high) in zip(
        np.asarray(factors), [(0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1)], strict=True
    ):
        uniform = scipy.stats.uniform(low, high - low)
        assert scipy.stats.kstest(row, uniform.cdf).pvalue > ALPHA
    assert np.abs(np.corrcoef(np.asarray(factors)) - np.eye(4)).max() < 4 / math.sqrt(count)
    orders, counts = np.unique(np.asarray(order), axis=0, return_counts=True)
    assert len(orders) == 24
    assert scipy.stats.chisquare(counts).pvalue > ALPHA


def test_brightness_of_views_is_uniform():
    view = View(8, crop="center", **(PLAIN | {"jitter_probability": 1.0}), contrast=0.0)
    gray = np.full((8, 8, 3), 180, np.uint8)  # saturation and hue leave gray alone
    factors = (views_of(gray, 4000, view)[:, 0, 0, 0] + 0.5) / 180
    assert scipy.stats.kstest(factors, scipy.stats.uniform(0.6, 0.8).cdf).statistic < 0.03


def test_hue_of_views_is_uniform():
    view = View(
        8, crop="center", **(PLAIN | {"jitter_probability": 1.0}),
        brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1,
    )  # fmt: skip
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    colors = views_of(red, 4000, view)[:, 0, 0] / 255
    hues = np.array([colorsys.rgb_to_hsv(*rgb)[0] for rgb in colors])
    hues = np.where(hues > 0.5, hues - 1, hues)
    assert (
        scipy.stats.kstest(hues, scipy.stats.uniform(-0.1, 0.2).cdf).statistic < 0.06
    )  # in steps of 1/255


def test_sigmas_of_views_are_uniform():
    line = np.zeros((33, 33, 3), np.uint8)
    line[:, 16] = 255
    view = View(33, crop="center", **(PLAIN | {"blur_probability": 1.0}))
    peaks = views_of(line, 2000, view)[:, 16, 16, 0]
    for sigma in (0.6, 1.03, 1.5):
        blurred = Image.fromarray(line).filter(ImageFilter.GaussianBlur(sigma))
        peak = np.asarray(blurred)[16, 16, 0] + 0.5
        low, high = bounds((sigma - 0.1) / 1.9, 2000)
        assert low - 0.01 <= (peaks > peak).mean() <= high + 0.01


def test_order_of_the_operators(small_images):
    images, sizes = on_canvas(small_images)
    sure = dict.fromkeys(
        ("flip_probability", "grayscale_probability", "blur_probability", "solarize_probability"),
        1.0,
    )
    view = View(24, crop="center", jitter_probability=0.0, blur_sigma=(1.0, 1.0), **sure)
    (got,) = augment(jax.random.key(0), images, sizes, (view,), ZEROS, ONES)
    for result, image in zip(got, small_images, strict=True):
        gray = Image.fromarray(image).resize((24, 24), FILTERS["bilinear"]).convert("L")
        solarized = ImageOps.solarize(gray.filter(ImageFilter.GaussianBlur(1.0)), 128)
        expected = ImageOps.mirror(solarized).convert("RGB")
        assert mean_error(result * 255, expected) < 0.15


def test_color_before_the_crop_is_that_of_the_whole_image(photographs):
    images, sizes = on_canvas(photographs)  # of several sizes, so with black beside them
    only_contrast = {"brightness": 0.0, "saturation": 0.0, "hue": 0.0, "contrast": 0.8}
    sure = {"jitter_probability": 1.0, "grayscale_probability": 1.0}
    view = View(64, crop="center", color_first=True, **(PLAIN | sure | only_contrast))
    key = jax.random.key(2)
    (got,) = augment(key, images, sizes, (view,), ZEROS, ONES)
    numbers = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 0), 2))[1]
    _, factors, _ = jitter_numbers(numbers, len(images), view)
    boxes = np.asarray(center_boxes(sizes[:, :2]))
    for result, image, factor, box in zip(got, photographs, factors[0], boxes, strict=True):
        whole = ImageEnhance.Contrast(Image.fromarray(image)).enhance(float(factor))
        gray = np.asarray(whole.convert("L").convert("RGB"))
        assert mean_error(result * 255, pillow_crop(gray, box, 64, "bilinear")) < 0.1


def test_jitter_comes_before_solarize():
    view = View(
        8, crop="center", **(PLAIN | {"jitter_probability": 1.0, "solarize_probability": 1.0})
    )
    assert views_of(np.full((8, 8, 3), 110, np.uint8), 200, view).max() <= 127


def test_dropping_an_operator_leaves_the_others_numbers_alone(small_images):
    images, sizes = on_canvas(small_images)
    base = {"hue": 0.0, "saturation": 0.0, "contrast": 0.0, "blur_probability": 0.0}
    views = [
        View(24, **base),
        View(24, **base, grayscale_probability=0.0),
        View(24, **base, jitter_probability=0.0),
    ]
    # Each view has a key of its own, so the comparison needs a call for each.
    one, no_gray, no_jitter = (
        np.asarray(augment(jax.random.key(4), images, sizes, (v,), ZEROS, ONES)[0]) for v in views
    )
    is_gray = np.ptp(one, axis=3).max(axis=(1, 2)) < 1e-6
    assert 0 < is_gray.sum() < len(images)
    np.testing.assert_array_equal(one[~is_gray], no_gray[~is_gray])
    same = np.isclose(one, no_jitter, atol=1e-6).all(axis=(1, 2, 3))
    assert 0 < same.sum() < len(images)  # those that were not jittered


def test_dropping_a_jitter_range_leaves_the_other_factors_alone():
    key = jax.random.key(9)
    _, factors, order = jitter_numbers(key, 50, View(8))
    _, fewer, fewer_order = jitter_numbers(key, 50, View(8, contrast=0.0))
    np.testing.assert_array_equal(fewer, factors[jnp.array([0, 2, 3])])
    for row, short in zip(np.asarray(order), np.asarray(fewer_order), strict=True):
        kept = [k for k in row.tolist() if k != 1]
        assert kept == [[0, 2, 3][k] for k in short.tolist()]


def test_views_get_numbers_of_their_own_and_keys_repeat_them(small_images):
    images, sizes = on_canvas(small_images)
    run = functools.partial(
        augment,
        images=images,
        sizes=sizes,
        views=(View(16, **WEAK_VIEW),) * 2,
        mean=ZEROS,
        std=ONES,
    )
    one, other = run(jax.random.key(0))
    again, _ = run(jax.random.key(0))
    changed, _ = run(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert mean_error(one, other) > 0.01 and mean_error(one, changed) > 0.01


def test_views_of_several_sizes_and_normalisation(small_images):
    images, sizes = on_canvas(small_images)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    views = (View(32, crop="center", **PLAIN), View(12, crop_scale=(0.05, 0.32), **WEAK_VIEW))
    large, small = augment(jax.random.key(0), images, sizes, views, mean, std)
    assert small.shape == (len(small_images), 12, 12, 3) and small.dtype == jnp.float32
    expected = (np.stack(small_images) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(large, expected, atol=2e-6)
    np.testing.assert_allclose(
        normalize(jnp.stack(small_images) * 1.0, mean, std), expected, atol=2e-6
    )


def test_unused_operators_are_not_in_the_program(small_images):
    images, sizes = on_canvas(small_images)

    def lines(view):
        return str(
            jax.make_jaxpr(
                lambda key: augment(key, images, sizes, (view,), ZEROS, ONES)
            )(jax.random.key(0))
        )  # fmt: skip

    weak, full = lines(View(16, **WEAK_VIEW)), lines(View(16))
    assert "scan" in full and "scan" not in weak  # the jitter's loop
    assert "u32[40,3,16,16]" in full and "u32[40,3,16,16]" not in weak  # the blur's whole numbers


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several (virtual) devices")
def test_sharding_does_not_change_the_views(small_images):
    images, sizes = on_canvas(small_images[:32])
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    view = View(16, hue=0.0, saturation=0.0, contrast=0.0)

    @jax.jit
    def run(key, images, sizes):
        return augment_eagerly(key, images, sizes, (view,), ZEROS, ONES)[0]

    alone = run(jax.random.key(0), images, sizes)
    sharded = run(jax.random.key(0), jax.device_put(images, rows), jax.device_put(sizes, rows))
    assert sharded.sharding.is_equivalent_to(rows, sharded.ndim)
    # Two programs, so that a value in the middle between two levels can fall on either,
    # in each operator.
    difference = np.abs(np.asarray(alone) - np.asarray(sharded)) * 255
    assert difference.max() < 2.5
    assert (difference > 1e-3).mean() < 0.02
