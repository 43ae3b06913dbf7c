"""How fast the host delivers images, beside JPEG decoding alone and the authors' PIL chain.

python -m benchmarks.host_input --source=folder:DIR --output=FILE.json [--batch_size=64]
[--repeats=5] [--config=configs/imagenet_vits.py]

All figures are of one process on the cores that it may use, medians of the repeats, which take
turns. In images per second:
  decode_images_per_second: `simplejpeg.decode_jpeg` of the files' bytes from memory, at full size,
    in as many threads as there are cores.
  pipeline_images_per_second: `resa_jax.data.pipeline.batches`, from the files to batches, as the
    recipe sets it; small images are decoded before, once, and held.
  pipeline_with_augmentation_images_per_second: the same, and the recipe's two views on the device
    (here mostly a CPU, which then has to do both).
  peer_images_per_second: two views as the authors' torchvision transforms make them with PIL, one
    process a core.
consumer_us_per_image is the CPU time of the thread that takes the batches; overhead_us_per_image is
the CPU time of the whole process for an image, less that of decoding alone.
"""

import io
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg
from absl import flags
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.data.augment import augment
from resa_jax.data.pipeline import batches, usable_cores
from resa_jax.data.sources import open_source
from resa_jax.data.view import View


_SOURCE = flags.DEFINE_string("source", None, "folder:DIR of JPEG photographs.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)
_CONFIG = flags.DEFINE_string("config", "configs/imagenet_vits.py", "Recipe of two RGB views.")
_EPOCHS = 4  # of decoding and of the pipeline, so that its start does not weigh
_REPEATS = flags.DEFINE_integer("repeats", 5, "Passes of each kind.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Measures and writes the file."""
    del arguments
    config = load_config(_CONFIG.value, [f"data.source={_SOURCE.value}"])
    source = open_source(_SOURCE.value)
    files = Path(_SOURCE.value.removeprefix("folder:")).rglob("*")
    data = [file.read_bytes() for file in sorted(files) if file.is_file()]
    jpegs = [d for d in data if d[:2] == b"\xff\xd8" and _is_color(d)]
    steps = _EPOCHS * (len(source) // _BATCH.value)

    def decode():
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(simplejpeg.decode_jpeg, jpegs * _EPOCHS))
        return len(jpegs) * _EPOCHS

    def pipeline(consume=lambda batch: None, steps=steps):
        options = {"batch_size": _BATCH.value, "seed": 0, "start_step": 0, "num_steps": steps}
        with batches(source, workers=config.data.workers, **options) as stream:
            for batch in stream:
                consume(batch)
        return steps * _BATCH.value

    views = tuple(View(**view) for view in config.views)
    mean, std = config.data.mean, config.data.std
    make_views = jax.jit(lambda key, *batch: augment(key, *batch, views, mean, std))

    def with_augmentation():
        take = lambda b: jax.block_until_ready(
            make_views(jax.random.key(0), b["images"], b["sizes"])
        )
        return pipeline(take, steps // _EPOCHS)

    def peer():
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(usable_cores(), spawn) as pool:
            list(pool.map(_two_views, data, repeat(views), repeat((mean, std)), chunksize=16))
        return len(data)

    kinds = {
        "decode": decode,
        "pipeline": pipeline,
        "pipeline_with_augmentation": with_augmentation,
        "peer": peer,
    }
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for number in range(_REPEATS.value + 1):  # the first one warms up
        for name, function in kinds.items():
            figures = _timed(function)
            if number:
                passes[name].append(figures)
    median = {
        name: {key: statistics.median(p[key] for p in some) for key in some[0]}
        for name, some in passes.items()
    }
    rates = {f"{name}_images_per_second": f["rate"] for name, f in median.items()}
    result: dict[str, Any] = rates | {
        "pipeline_of_decode": median["pipeline"]["rate"] / median["decode"]["rate"],
        "pipeline_of_peer": median["pipeline"]["rate"] / median["peer"]["rate"],
        "consumer_us_per_image": median["pipeline"]["thread_us"],
        "overhead_us_per_image": median["pipeline"]["cpu_us"] - median["decode"]["cpu_us"],
        "config": _CONFIG.value,
        "images": len(data),
        "batch_size": _BATCH.value,
        "cores": usable_cores(),
        "workers": config.data.workers,
        "repeats": _REPEATS.value,
        "machine": _machine(),
    }
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _machine():
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    packages = ("jax", "grain", "numpy", "pillow", "simplejpeg")
    return {"cpu": names[0] if names else "unknown"} | {name: version(name) for name in packages}


def _timed(function):
    wall, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
    count = function()
    return {
        "rate": count / (time.perf_counter() - wall),
        "cpu_us": (time.process_time() - cpu) / count * 1e6,
        "thread_us": (time.thread_time() - thread) / count * 1e6,
    }


def _is_color(data):
    try:
        return simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK")
    except ValueError:
        return False


def _two_views(
    data: bytes, views: Sequence[View], statistics: tuple[Sequence[float], Sequence[float]]
) -> list[np.ndarray]:
    """The views as torchvision's transforms make them with PIL, normalised."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return [_normalized(_view(image, view), *statistics) for view in views]


def _view(image, view):
    image = _resized_crop(image, view)
    if random.random() < view.jitter_probability:
        jitters = [
            lambda x: ImageEnhance.Brightness(x).enhance(_factor(view.brightness)),
            lambda x: ImageEnhance.Contrast(x).enhance(_factor(view.contrast)),
            lambda x: ImageEnhance.Color(x).enhance(_factor(view.saturation)),
            lambda x: _hue(x, view.hue),
        ]
        random.shuffle(jitters)
        for jitter in jitters:
            image = jitter(image)
    if random.random() < view.grayscale_probability:
        image = ImageOps.grayscale(image).convert("RGB")
    if random.random() < view.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*view.blur_sigma)))
    if random.random() < view.solarize_probability:
        image = ImageOps.solarize(image, 128)
    return ImageOps.mirror(image) if random.random() < view.flip_probability else image


def _factor(strength):
    return random.uniform(1 - strength, 1 + strength)


def _resized_crop(image, view):
    filter_ = Image.Resampling[view.interpolation.upper()]
    result = (view.size, view.size)
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*view.crop_scale)
        ratio = np.exp(random.uniform(*np.log(view.crop_ratio)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return image.crop((left, top, left + w, top + h)).resize(result, filter_)
    side = min(width, height)
    return ImageOps.fit(image, (side, side)).resize(result, filter_)


def _hue(image, strength):
    h, s, v = image.convert("HSV").split()
    turned = (
        np.array(h, np.uint8) + np.uint8(random.uniform(-strength, strength) * 255 % 256)
    ).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")


def _normalized(image, mean, std):
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    mean, std = np.array(mean, np.float32), np.array(std, np.float32)
    return (pixels - mean[:, None, None]) / std[:, None, None]


if __name__ == "__main__":
    run(main)
