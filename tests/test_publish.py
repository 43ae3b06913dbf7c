"""Folders that timm and transformers load by themselves: their features are ours."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import resa_jax
from resa_jax.errors import UserError
from resa_jax.models.encoders import create_encoder
from resa_jax.models.network import split
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.conversion import convert
from resa_jax.weights.export import export_encoder


SIZES = {"resnet": 64, "vit": 32, "deit3": 32, "dinov2": 28}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def random_export(folder, name):
    """An export of random numbers, batch statistics and position tables included."""
    size = next(size for family, size in SIZES.items() if name.startswith(family))
    spec = EncoderSpec(name, image_size=size, mean=MEAN, std=STD)
    key = jax.random.key(0)
    module = create_encoder(name, image_size=size, rngs=nnx.Rngs(0))
    _, params, batch_stats = split(module)

    def noisy(leaf):
        noise = jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape, leaf.dtype)
        return np.asarray(leaf + 0.01 * abs(noise))

    trees = (jax.tree.map(noisy, tree) for tree in (params, batch_stats))
    export_encoder(folder, spec, *trees, network="ema", step=1)
    return folder


NAMES = ["resnet18", "resnet50", "vit_ti16", "vit_s16_mocov3", "deit3_s16", "dinov2_s14"]


@pytest.mark.torch
@pytest.mark.parametrize("layout", ["timm", "transformers"])
@pytest.mark.parametrize("name", NAMES)
def test_the_library_gives_our_features(tmp_path, name, layout):
    torch, library = pytest.importorskip("torch"), pytest.importorskip(layout)
    source = random_export(tmp_path / "encoder", name)
    output = tmp_path / "released"
    if layout == "transformers" and name.startswith("deit3"):
        with pytest.raises(UserError, match="is not written for deit3_s16"):
            convert(source, output, layout=layout)
        return
    convert(source, output, layout=layout)
    ours, back = resa_jax.load_encoder(source), resa_jax.load_encoder(output)
    size = ours.spec.image_size
    images = np.random.default_rng(0).integers(256, size=(3, size, size, 3), dtype=np.uint8)
    expected = np.asarray(ours(images))
    np.testing.assert_allclose(back(images), expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    inputs = torch.from_numpy((images / 255 - np.array(MEAN)) / np.array(STD)).float()
    with torch.no_grad():
        if layout == "timm":
            model = library.create_model(f"local-dir:{output}", pretrained=True).eval()
            assert (
                model.pretrained_cfg["mean"] == MEAN or tuple(model.pretrained_cfg["mean"]) == MEAN
            )
            found = model(inputs.permute(0, 3, 1, 2))
        else:
            model, report = library.AutoModel.from_pretrained(output, output_loading_info=True)
            # A ViT's pooler is a head, which no encoder here has.
            lacking = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
            assert not lacking and not report["unexpected_keys"]
            found = model.eval()(inputs.permute(0, 3, 1, 2))
            pooled = name.startswith("resnet")
            found = found.pooler_output.flatten(1) if pooled else found.last_hidden_state[:, 0]
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-5


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")  # PyTorch's
@pytest.mark.parametrize("name", ["resnet18", "deit3_s16", "dinov2_s14"])
def test_onnx_by_way_of_timm(tmp_path, name):
    """As docs/weights.md has it."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    source, folder, file = (tmp_path / part for part in ("encoder", "timm", "own.onnx"))
    convert(random_export(source, name), folder, layout="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    shapes = ({0: "batch"},)
    torch.onnx.export(model, (images,), file, dynamic_shapes=shapes, external_data=False)
    ours = resa_jax.load_encoder(source)
    images = np.random.default_rng(0).integers(
        256, size=(5, *ours.spec.height_width, 3), dtype=np.uint8
    )
    inputs = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.transpose(0, 3, 1, 2)})
    expected = np.asarray(ours(images))
    assert np.abs(found - expected).max() / np.abs(expected).max() < 2e-5


@pytest.mark.slow
def test_counters_of_batches_are_scalars(tmp_path):
    """As PyTorch has them: transformers refuses another shape."""
    convert(random_export(tmp_path / "a", "resnet18"), tmp_path / "b", layout="transformers")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    counters = [x for name, x in tensors.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20 and {x.shape for x in counters} == {()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_the_folder_says_what_it_holds(tmp_path, layout):
    source = random_export(tmp_path / "encoder", "vit_ti16")
    convert(source, tmp_path / "released", layout=layout)
    card = (tmp_path / "released" / "README.md").read_text()
    assert "vit_ti16" in card and "0.4, 0.5, 0.6" in card
    config = json.loads((tmp_path / "released" / "config.json").read_text())
    assert config["num_classes" if layout == "timm" else "num_channels"] in (0, 3)
    assert resa_jax.load_encoder(tmp_path / "released").spec.mean == MEAN
    with pytest.raises(UserError, match="must be a new folder"):
        convert(source, tmp_path / "released", layout=layout)
    with pytest.raises(UserError, match="is not written for resnet18_cifar"):
        convert(random_export(tmp_path / "b", "resnet18_cifar"), tmp_path / "c", layout=layout)
    assert not (tmp_path / "c").exists()
