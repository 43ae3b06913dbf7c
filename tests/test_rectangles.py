"""Images that are no squares: views, crops, encoders, and a whole run on them."""

import json

import data_samples
import jax
import numpy as np
import pytest
from evaluation_run import make_run
from jax import export
from PIL import Image
from test_augment import FILTERS, ONES, PLAIN, View, augment, mean_error, on_canvas, read
from test_channels import run_command

import resa_jax
from resa_jax.config import load_config
from resa_jax.data.augment import center_crop
from resa_jax.data.boxes import center_boxes, random_boxes
from resa_jax.errors import UserError
from resa_jax.models.positions import resize_positions, sincos_table
from resa_jax.models.spec import EncoderSpec, usual_resize
from resa_jax.serving import export_stablehlo
from resa_jax.weights.conversion import convert


SIZES = [(48, 96), (96, 40)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return read(data_samples.photographs(tmp_path_factory.mktemp("photographs"), count=8))


def lying(images):
    """On a canvas that is wider than high; images that are higher than wide lie turned."""
    turned = [image.shape[0] > image.shape[1] for image in images]
    laid = [x.transpose(1, 0, 2) if t else x for x, t in zip(images, turned, strict=True)]
    pixels, sizes = on_canvas(laid)
    sizes[:, 2] = turned
    return pixels[:, : sizes[:, 0].max()], sizes


@pytest.mark.parametrize("lay", [on_canvas, lying])
@pytest.mark.parametrize("size", SIZES)
def test_views_equal_pillow(photographs, size, lay):
    """A crop's width over its height is drawn around the view's own."""
    height, width = size
    view = View(size, **PLAIN | {"crop_scale": (0.2, 1.0), "interpolation": "bicubic"})
    key = jax.random.key(1)
    (got,) = augment(key, *lay(photographs), (view,), (0.0,) * 3, ONES)
    assert got.shape == (len(photographs), *size, 3)
    crop_key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    sizes = np.array([image.shape[:2] for image in photographs])
    ratio = 3 / 4 * width / height, 4 / 3 * width / height
    boxes = np.asarray(random_boxes(crop_key, sizes, (0.2, 1.0), ratio))
    for result, image, (top, left, rows, columns) in zip(got, photographs, boxes, strict=True):
        cropped = Image.fromarray(image).crop((left, top, left + columns, top + rows))
        expected = np.asarray(cropped.resize((width, height), FILTERS["bicubic"]))
        assert mean_error(255 * result, expected) < 0.2  # the longer side comes first in Pillow


def test_a_flip_of_images_that_lie_turned_is_of_their_width(photographs):
    plain, flipped = (View((48, 96), **PLAIN | {"flip_probability": p}) for p in (0.0, 1.0))
    for view in (plain, flipped):
        assert view.size == (48, 96)
    key = jax.random.key(2)
    (one,) = augment(key, *lying(photographs), (plain,), (0.0,) * 3, ONES)
    (other,) = augment(key, *lying(photographs), (flipped,), (0.0,) * 3, ONES)
    np.testing.assert_array_equal(one[:, :, ::-1], other)


@pytest.mark.parametrize("lay", [on_canvas, lying])
@pytest.mark.parametrize("size", SIZES)
def test_center_crop_covers_the_shape(photographs, size, lay):
    """As timm's ResizeKeepRatio and CenterCrop: the least enlargement that leaves no border."""
    height, width = size
    resize = min(size) + 16
    options = {"size": size, "resize": resize, "interpolation": "bicubic"}
    got = center_crop(*lay(photographs), **options)
    cover = [round(resize * side / min(size)) for side in size]
    for result, image in zip(got, photographs, strict=True):
        scale = max(cover[0] / image.shape[0], cover[1] / image.shape[1])
        sides = [
            max(int(side * scale + 1e-6), c) for side, c in zip(image.shape, cover, strict=False)
        ]
        resized = Image.fromarray(image).resize(sides[::-1], FILTERS["bicubic"])
        left, top = round((sides[1] - width) / 2), round((sides[0] - height) / 2)
        expected = resized.crop((left, top, left + width, top + height))
        assert mean_error(result, expected) < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1)])
def test_center_boxes_are_the_largest(shape):
    sizes = np.array([[30, 50], [50, 30], [7, 90], [90, 7], [1, 1]])
    for (height, width), box in zip(sizes, np.asarray(center_boxes(sizes, shape)), strict=True):
        unit = min(height / shape[0], width / shape[1])
        expected = [max(int(unit * side), 1) for side in shape]
        assert abs(box[2:] - expected).max() <= 1
        assert tuple(box[:2]) == ((height - box[2]) // 2, (width - box[3]) // 2)
        assert box[2] == height or box[3] == width


def test_position_tables_of_rectangles_are_cut_from_those_of_squares():
    for rows_first in (False, True):
        square = sincos_table(32, 6, 6, rows_first=rows_first)[1:].reshape(6, 6, 32)
        for rows, columns in ((2, 6), (6, 3)):
            table = sincos_table(32, rows, columns, rows_first=rows_first)
            assert not table[0].any()
            expected = square[:rows, :columns].reshape(-1, 32)
            np.testing.assert_array_equal(table[1:], expected)


def test_a_table_knows_its_grid():
    """4 x 9 patches are as many as 6 x 6 and lie otherwise."""
    table = jax.random.normal(jax.random.key(0), (1, 37, 8))
    assert resize_positions(table, 4, 9, grid=(4, 9)) is table
    square = resize_positions(table, 6, 6, grid=(4, 9))
    assert square.shape == table.shape and not np.allclose(square, table, atol=0.1)
    flat = table.at[:, 1:].set(1.0)
    np.testing.assert_allclose(resize_positions(flat, 6, 6, grid=(4, 9)), flat, atol=1e-5)


def test_sizes_are_checked():
    config = load_config("digits", ["encoder.image_size=(8, 16)"])
    assert config.encoder.image_size == (8, 16) and config.data.resize == 8
    assert all(view.size == (8, 16) for view in config.views)
    config = resa_jax.get_config("digits", **{"encoder.image_size": [8, 16]})
    assert config.views[0].size == (8, 16)
    for text in ("(8,)", "(8, 0)", "(8, 8, 3)", "(8, 9000)", "(8.5, 3)", "eight", "0"):
        with pytest.raises(UserError, match=r"config\.encoder\.image_size"):
            load_config("digits", [f"encoder.image_size={text}"])
    with pytest.raises(UserError, match=r"data\.resize is 7, too small for the 8 x 16 px"):
        load_config("digits", ["encoder.image_size=(8, 16)", "data.resize=7"])
    with pytest.raises(UserError, match=r"\(32, 40\), which patches of 16 px do not divide"):
        EncoderSpec("vit_s16", image_size=(32, 40)).create()


def test_the_canvas_holds_what_covers_the_shape():
    spec = EncoderSpec("resnet18", image_size=(224, 896))
    assert usual_resize(spec.image_size) == 256
    assert spec.decoding.size(1024, 1024) == (1024, 1024)


VIT = ["encoder.name=vit_s16", "encoder.patch_size=4", "encoder.width=24", "encoder.depth=2"]
ENCODERS = {"vit": VIT, "resnet": ["encoder.name=resnet18", "encoder.width=4"]}
IMAGES = np.random.default_rng(3).integers(256, size=(5, 8, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=ENCODERS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder / "run", "encoder.image_size=(8,16)", *ENCODERS[request.param])


@pytest.mark.slow
def test_an_encoder_is_the_same_from_everywhere(run, tmp_path):
    encoder = resa_jax.load_encoder(run)
    assert encoder.spec.image_size == (8, 16)
    expected = np.asarray(encoder(IMAGES))
    for path in (run / "encoder", run / "checkpoints" / "4"):
        loaded = resa_jax.load_encoder(path)
        assert loaded.spec == encoder.spec
        np.testing.assert_array_equal(loaded(IMAGES), expected)
    convert(run, tmp_path / "a.safetensors")
    lines = convert(run, tmp_path / "b", layout="transformers")
    assert any("stretches" in line for line in lines)
    if encoder.spec.family == "vit":  # timm has no ResNets of this width
        convert(run, tmp_path / "c", layout="timm")
        config = json.loads((tmp_path / "c" / "config.json").read_text())
        assert config["pretrained_cfg"]["input_size"] == [3, 8, 16]
        assert config["model_args"]["img_size"] == [8, 16]
    for path in tmp_path.iterdir():
        loaded = resa_jax.load_encoder(path)
        assert loaded.spec.image_size == (8, 16)
        np.testing.assert_allclose(loaded(IMAGES), expected, rtol=1e-4, atol=1e-5)
    call = export.deserialize(bytearray(export_stablehlo(encoder))).call
    np.testing.assert_allclose(call(IMAGES), expected, rtol=1e-4, atol=1e-5)
    encoded = resa_jax.encode(run, IMAGES)["encoding"]
    np.testing.assert_allclose(encoded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_and_evaluation(run, tmp_path):
    """On images of the shape, from the run's weights: also from a position table of another."""
    vit = resa_jax.load_encoder(run).spec.family == "vit"
    wide = np.random.default_rng(0).integers(256, size=(64, 12, 30, 3), dtype=np.uint8)
    source = tmp_path / "wide.npz"
    np.savez(source, images=wide, labels=np.arange(64) % 4)
    fields = [f"data.source=npz:{source}", "batch_size=32", "encoder.image_size=(12,28)"]
    fields += [f"init_from={run / 'encoder'}", "eval.baselines=true", "views[1].size=(12,20)"]
    fields += ENCODERS["vit" if vit else "resnet"]
    resa_jax.train(load_config("digits:smoke", fields), tmp_path / "run")
    encoder = resa_jax.load_encoder(tmp_path / "run")
    assert encoder.spec.height_width == (12, 28)
    assert np.isfinite(resa_jax.encode(encoder, wide)["encoding"]).all()
    scores = resa_jax.score(tmp_path / "run", "knn-cifar", f"npz:{source}")
    assert 0 <= scores["results"]["k5"]["top1"] <= 100
    said = run_command("report", f"--workdir={tmp_path / 'run'}")
    assert "report.html" in said and "12 x 28 px" in (tmp_path / "run/report.html").read_text()
    command = "evaluate", f"--encoder={run}", f"--source=npz:{source}", "--protocol=knn-cifar"
    assert "k5" in run_command(*command, "--image_size=8,12", f"--output={tmp_path / 'a.json'}")
    with pytest.raises(AssertionError, match="--image_size=8,x must be a side in pixels, or hei"):
        run_command(*command, "--image_size=8,x")


@pytest.mark.torch
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_the_library_gives_our_features(run, tmp_path, layout):
    torch, library = pytest.importorskip("torch"), pytest.importorskip(layout)
    ours = resa_jax.load_encoder(run)
    if ours.spec.family != "vit":
        pytest.skip("a ResNet knows no image size")
    convert(run, tmp_path / "released", layout=layout)
    inputs = (IMAGES / 255 - np.array(ours.spec.mean)) / np.array(ours.spec.std)
    inputs = torch.from_numpy(inputs).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        if layout == "timm":
            model = library.create_model(f"local-dir:{tmp_path / 'released'}", pretrained=True)
            found = model.eval()(inputs)
        else:
            model = library.AutoModel.from_pretrained(tmp_path / "released")
            found = model.eval()(inputs).last_hidden_state[:, 0]
    np.testing.assert_allclose(found.numpy(), ours(IMAGES), rtol=1e-4, atol=1e-5)
