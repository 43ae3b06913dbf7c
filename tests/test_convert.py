"""PyTorch weights in and out: names, round trips, authors' checkpoints, refusals."""

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layouts
from safetensors.numpy import load_file, save_file

from resa_jax.encoder import load_encoder
from resa_jax.errors import UserError
from resa_jax.models.encoders import ENCODERS
from resa_jax.models.positions import sincos_table
from resa_jax.models.spec import EncoderSpec
from resa_jax.models.vit import VITS
from resa_jax.weights.conversion import convert
from resa_jax.weights.export import export_encoder
from resa_jax.weights.files import read_tensors, write_tensors
from resa_jax.weights.infer import infer_spec
from resa_jax.weights.names import encoder_slots
from resa_jax.weights.networks import read_networks
from resa_jax.weights.reading import read_encoder
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import encoder_from_torch, encoder_to_torch


CIFAR = torch_layouts.resnet(False, (2, 2, 2, 2), 3, width=4)
IMAGENET = torch_layouts.resnet(False, (2, 2, 2, 2), 7, width=4)
COUNTERS = {"bn1.num_batches_tracked": np.int64(7), "layer1.0.bn1.num_batches_tracked": np.int64(7)}


def float32(tensors):
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def weights(shapes, seed=0):
    return float32(torch_layouts.formula(shapes, seed))


def full_checkpoint(layout=CIFAR, vit=False, features=32, predictor=True, hidden=16, out=8):
    """The authors' networks of one training run, by their names; every tensor another."""
    heads = torch_layouts.projector(vit, features, hidden, out)
    parts = {"encoder": layout, "projector": heads}
    if predictor:
        parts["predictor"] = torch_layouts.predictor(vit, out, hidden)
    parts |= {"momentum_encoder": layout, "momentum_projector": heads}
    tensors = {}
    for seed, (part, shapes) in enumerate(parts.items()):
        tensors |= torch_layouts.prefixed(f"module.{part}", weights(shapes, seed))
    return tensors


def save(path, tensors):
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def small_encoder(name):
    """A small encoder of the named architecture, with values by formula."""
    if name in VITS:
        spec = EncoderSpec(name, image_size=32, patch_size=8, width=64, depth=2, mean=(0.1,) * 3)
    else:
        spec = EncoderSpec(name, image_size=32, width=4, resize=36)
    shapes = {name: slot.shape for name, slot in encoder_slots(spec).items()}
    trees = {"params": {}, "batch_stats": {}}
    tensors = weights(shapes)
    for key, slot in encoder_slots(spec).items():
        node = trees[slot.collection]
        for part in slot.path[:-1]:
            node = node.setdefault(part, {})
        node[slot.path[-1]] = slot.from_torch(tensors[key])
    return (spec, trees["params"], trees["batch_stats"]), tensors


def assert_bitwise(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def assert_same_tensors(ours, theirs):
    assert list(ours) == list(theirs) or set(ours) == set(theirs)
    assert_bitwise(dict(sorted(ours.items())), dict(sorted(theirs.items())))


# Out and in again.


@pytest.mark.parametrize("name", ENCODERS)
def test_round_trip_of_our_own(name, tmp_path):
    encoder, tensors = small_encoder(name)
    assert_same_tensors(encoder_to_torch(*encoder), tensors)
    path = tmp_path / "model.safetensors"
    write_tensors(path, encoder_to_torch(*encoder), asdict(encoder[0]))
    assert_same_tensors(load_file(path), tensors)
    spec, *trees = read_encoder(path)
    assert spec == encoder[0]
    assert_bitwise(trees, list(encoder[1:]))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("resnet18_small", ".safetensors"),
        ("vitc_s16", ".safetensors"),
        ("vit_s16_mocov3", ".safetensors"),
        pytest.param("resnet50", ".pkl", marks=pytest.mark.slow),
        ("resnet18_small", ".pkl"),
        pytest.param("resnet18_small", ".pth", marks=pytest.mark.torch),
        pytest.param("vitc_s16", ".pth", marks=pytest.mark.torch),
        pytest.param("vit_b16", ".pth", marks=pytest.mark.torch),
    ],
)
def test_round_trip_through_the_command(name, suffix, tmp_path):
    if suffix == ".pth":
        pytest.importorskip("torch")
    encoder, _ = small_encoder(name)
    export_encoder(tmp_path / "export", *encoder)
    file, back = tmp_path / f"model{suffix}", tmp_path / "back"
    if suffix == ".pkl" and name != "resnet50":
        with pytest.raises(UserError, match="for resnet50 only"):
            convert(tmp_path / "export", file)
        return
    lines = convert(tmp_path / "export", file)
    assert lines[-1] == "read back: encodings differ by 0.0e+00 (relative)"
    convert(file, back)
    spec, *trees = read_encoder(back)
    assert_bitwise(trees, list(encoder[1:]))
    if suffix != ".pkl":  # which holds tensors alone
        assert spec == encoder[0]
    again = tmp_path / f"again{suffix}"
    convert(back, again)
    assert_same_tensors(read_tensors(again).tensors, read_tensors(file).tensors)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_foreign_weights_come_back_bitwise(tmp_path):
    tensors = weights(IMAGENET)
    head = {"fc.weight": np.ones((10, 32), np.float32), "fc.bias": np.ones(10, np.float32)}
    path = save(tmp_path / "torchvision.safetensors", tensors | head | COUNTERS)
    lines = "\n".join(convert(path, tmp_path / "export"))
    assert "architecture: resnet18\n" in lines
    assert f"loaded: {len(tensors)} tensors of the file as the encoder" in lines
    assert "converted: 20 kernels transposed" in lines
    assert "left out: 2 x num_batches_tracked, fc.* (2 tensors)" in lines
    convert(tmp_path / "export", tmp_path / "out.safetensors")
    assert_same_tensors(load_file(tmp_path / "out.safetensors"), tensors)
    convert(path, tmp_path / "direct.safetensors")  # a file straight to a file
    assert_same_tensors(load_file(tmp_path / "direct.safetensors"), tensors)


def test_detectron2_layout(tmp_path):
    tensors = weights(torch_layouts.resnet(True, (3, 4, 6, 3), 7, width=4))
    source = save(tmp_path / "resnet50.safetensors", tensors)
    convert(source, tmp_path / "resnet50.pkl")
    with (tmp_path / "resnet50.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "resa_jax"
    model = content["model"]
    assert len(model) == len(tensors)
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res5.2.conv3.norm.running_var": "layer4.2.bn3.running_var",
        "res4.5.conv2.weight": "layer3.5.conv2.weight",
    }.items():
        np.testing.assert_array_equal(model[theirs], tensors[ours])
    # NumPy's own pickles, as other tools write them, are read as well.
    with (tmp_path / "theirs.pkl").open("wb") as file:
        pickle.dump(content | {"model": {k: v.copy() for k, v in model.items()}}, file)
    for name in ("resnet50.pkl", "theirs.pkl"):
        spec, params, stats = read_encoder(tmp_path / name)
        assert spec.name == "resnet50"
        assert_same_tensors(encoder_to_torch(spec, params, stats), tensors)


# Which architecture it is.


@pytest.mark.parametrize("name", ENCODERS)
def test_architecture_from_shapes(name, tmp_path):
    tensors = {
        key: np.broadcast_to(np.float32(0), shape)  # no memory
        for key, shape in torch_layouts.ENCODERS[name]().items()
    }
    if name in ("resnet18_cifar", "resnet18_small"):
        with pytest.raises(UserError, match=r"resnet18_cifar or resnet18_small.*--arch"):
            infer_spec(tmp_path, tensors, None, full=False)
        assert infer_spec(tmp_path, tensors, None, full=True).name == "resnet18_cifar"
        assert infer_spec(tmp_path, tensors, name, full=False).image_size == 32
        return
    if name.startswith("vit_s16"):
        table = sincos_table(384, 14, 14, rows_first=name == "vit_s16_mocov3")
        tensors["pos_embed"] = table[None].astype(np.float32)
    spec = infer_spec(tmp_path, tensors, None, full=False)
    assert spec == EncoderSpec(name, image_size=224, resize=256)


def tensors_of(encoder):
    """What a loaded encoder would be in PyTorch."""
    trees = encoder.params["encoder"], encoder.batch_stats["encoder"]
    return encoder_to_torch(encoder.spec, *trees)


def test_patch_and_image_size_from_shapes(tmp_path):
    for conv_stem, name in ((False, "vit_ti16"), (True, "vitc_s16")):
        width, depth = (384, 11) if conv_stem else (192, 12)
        shapes = torch_layouts.vit(width, depth, 4, 8, conv_stem)
        tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
        spec = infer_spec(tmp_path, tensors, None, full=False)
        assert spec == EncoderSpec(name, image_size=32, patch_size=4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (torch_layouts.vit(384, 10, 16, 14), r"10 blocks of width 384.*nearest is vit_s16"),
        (torch_layouts.vit(640, 12, 16, 14), "width 640.*nearest is vit_b16"),
        (torch_layouts.resnet(True, (3, 4, 8, 3), 7), "3-4-8-3 blocks.*nearest is resnet50"),
        ({"weight": (3,), "bias": (3,)}, "neither a ResNet nor a ViT; .* weight, bias"),
    ],
)
def test_unknown_architectures_name_the_nearest(shapes, message, tmp_path):
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    with pytest.raises(UserError, match=message):
        infer_spec(tmp_path, tensors, None, full=False)


def test_a_position_table_in_the_file_is_used(tmp_path):
    encoder, tensors = small_encoder("vit_s16")
    path = tmp_path / "vit.safetensors"
    write_tensors(path, tensors, asdict(encoder[0]))
    table = load_encoder(path).params["encoder"]["pos_embed"]
    np.testing.assert_array_equal(table, tensors["pos_embed"])
    assert not np.allclose(table[0], sincos_table(64, 4, 4, rows_first=False), atol=0.1)


def test_another_ones_position_table_is_remarked(tmp_path):
    tensors = weights(torch_layouts.ENCODERS["vit_s16"]())
    tensors["pos_embed"] = sincos_table(384, 14, 14, rows_first=True)[None].astype(np.float32)
    checkpoint = sort_networks(read_tensors(save(tmp_path / "vit.safetensors", tensors)))
    inferred = encoder_from_torch(checkpoint)
    assert inferred.encoder[0].name == "vit_s16_mocov3"
    assert "another number of heads" not in str(inferred.lines)
    asked = encoder_from_torch(checkpoint, arch="vit_s16")
    assert asked.encoder[0].name == "vit_s16"
    assert "that of vit_s16_mocov3, which has another number of heads" in str(asked.lines)


# The authors' checkpoints.


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_network_of_a_full_checkpoint(prefix, tmp_path):
    full = {k.replace("module.", prefix): v for k, v in full_checkpoint().items()}
    path = save(
        tmp_path / "full.safetensors",
        full | {f"{prefix}encoder.bn1.num_batches_tracked": np.int64(3)},
    )
    for network, child in (("ema", "momentum_encoder"), ("online", "encoder")):
        expected = {name: full[f"{prefix}{child}.{name}"] for name in CIFAR}
        output = tmp_path / network
        lines = "\n".join(convert(path, output, network=network))
        assert f"loaded: {len(CIFAR)} tensors of {child}.*" in lines
        other = {"encoder": "momentum_encoder", "momentum_encoder": "encoder"}[child]
        for left_out in (
            f"{other}.* (",
            "projector.* (",
            "momentum_projector.* (",
            "predictor.* (",
        ):
            assert left_out in lines.split("left out: ")[1]
        encoder = load_encoder(output)
        assert encoder.spec.name == "resnet18_cifar"
        assert_same_tensors(tensors_of(encoder), expected)
        direct = load_encoder(path, network=network)
        assert_bitwise([direct.params, direct.batch_stats], [encoder.params, encoder.batch_stats])


@pytest.mark.parametrize("child", ["encoder", "momentum_encoder", "base_encoder"])
def test_checkpoint_of_one_encoder(child, tmp_path):
    tensors = weights(IMAGENET)
    path = save(tmp_path / "one.safetensors", torch_layouts.prefixed(f"module.{child}", tensors))
    encoder = load_encoder(path)  # the only one there is
    assert_same_tensors(tensors_of(encoder), tensors)
    if child == "momentum_encoder":
        with pytest.raises(UserError, match=r"no online encoder, only momentum_encoder"):
            load_encoder(path, network="online")


@pytest.mark.parametrize("vit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_networks_of_a_full_checkpoint(vit, tmp_path):
    layout, features = (CIFAR, 32) if not vit else (torch_layouts.vit(192, 12, 16, 2), 192)
    tensors = full_checkpoint(layout, vit, features)
    path = save(tmp_path / "full.safetensors", tensors)
    lines = "\n".join(convert(path, tmp_path / "export"))
    for child in ("projector", "momentum_projector"):
        assert f"loaded: {6 if vit else 16} tensors of {child}.*" in lines
    assert "left out: nothing" in lines
    for source in (path, tmp_path / "export"):
        spec, trees = read_networks(source)
        assert spec.name == ("vit_ti16" if vit else "resnet18_cifar")
        assert set(trees["params"]) == {"encoder", "projector", "predictor"}
        assert set(trees["ema_params"]) == {"encoder", "projector"}
        assert trees["batch_stats"].keys() == (set() if vit else trees["params"].keys())
        linear = {False: "0.weight", True: "1.weight"}[vit]
        for ours, theirs in (
            (trees["params"]["projector"]["linear1"], "projector.0.weight"),
            (trees["params"]["projector"]["linear3"], f"projector.{4 if vit else 6}.weight"),
            (trees["params"]["predictor"]["linear1"], f"predictor.{linear}"),
            (
                trees["ema_params"]["projector"]["linear2"],
                f"momentum_projector.{2 if vit else 3}.weight",
            ),
        ):
            np.testing.assert_array_equal(ours["kernel"].T, tensors[f"module.{theirs}"])
        if not vit:
            np.testing.assert_array_equal(
                trees["ema_batch_stats"]["projector"]["bn3"]["var"],
                tensors["module.momentum_projector.7.running_var"],
            )
    # The same folder is an ordinary export, of the EMA encoder.
    encoder = load_encoder(tmp_path / "export")
    assert_bitwise(
        encoder.params["encoder"], jax.tree.map(jnp.asarray, trees["ema_params"]["encoder"])
    )


def test_networks_of_an_encoder_alone(tmp_path):
    tensors = weights(IMAGENET)
    path = save(tmp_path / "encoder.safetensors", tensors)
    spec, trees = read_networks(path)
    assert spec.name == "resnet18"
    kernel = trees["params"]["encoder"]["conv1"]["kernel"]  # height, width, in, out
    np.testing.assert_array_equal(
        kernel, np.einsum("oihw->hwio", tensors["conv1.weight"]), strict=True
    )
    assert {name: set(tree) for name, tree in trees.items()} == {
        name: {"encoder"} for name in ("params", "batch_stats", "ema_params", "ema_batch_stats")
    }
    assert_bitwise(trees["params"], trees["ema_params"])


# Refusals: a sentence, and nothing happens to the output.


PROOF = Path(tempfile.gettempdir()) / f"resa_jax_pickle_ran_{os.getpid()}"


class Dangerous:
    def __reduce__(self):
        return os.system, (f"touch {PROOF}",)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def saved(name, tensors):
    return lambda folder: save(folder / f"{name}.safetensors", tensors)


def written(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


GOOD = weights(IMAGENET)
BROKEN = {
    # kind: (makes the file, arch, part of the message)
    "truncated": (lambda folder: truncate(saved("cut", GOOD)(folder)), None, "is damaged"),
    "missing": (
        saved("missing", {k: v for k, v in GOOD.items() if k != "layer2.1.bn2.weight"}),
        None,
        r"1 tensor missing \(layer2.1.bn2.weight\)\.$",
    ),
    "extra": (
        saved("extra", GOOD | {"layer2.1.bn9.weight": np.ones(3)}),
        None,
        r"1 tensor unexpected \(layer2.1.bn9.weight\)",
    ),
    "shape": (
        saved("shape", GOOD | {"bn1.bias": np.zeros(5)}),
        None,
        r"bn1.bias is \(5,\) instead of \(4,\)",
    ),
    "nan": (
        saved("nan", GOOD | {"bn1.bias": np.array([0, np.nan, 0, 0])}),
        None,
        "no finite numbers, in bn1.bias",
    ),
    "infinite": (
        saved("infinite", GOOD | {"bn1.bias": np.array([0, np.inf, 0, 0])}),
        None,
        "no finite numbers, in bn1.bias",
    ),
    "integers": (
        saved("integers", GOOD | {"bn1.bias": np.zeros(4, np.int32)}),
        None,
        "no finite numbers, in bn1.bias",
    ),
    "wrong architecture": (
        saved("arch", GOOD),
        "resnet34",
        "does not fit resnet34: .* missing.*nearest architecture is resnet18",
    ),
    "wrong family": (
        saved("family", GOOD),
        "vit_s16",
        "does not fit vit_s16: .*nearest architecture is resnet18",
    ),
    "unknown architecture": (saved("unknown", GOOD), "resnet_18", "nearest is 'resnet18'"),
    "stray": (
        saved("stray", torch_layouts.prefixed("encoder", GOOD) | {"other.weight": np.ones(3)}),
        None,
        r"1 tensor unexpected \(other.weight\)\.$",
    ),
    "twice": (
        saved("twice", GOOD | {"module.bn1.bias": GOOD["bn1.bias"]}),
        None,
        "under two names",
    ),
    "head cut off": (
        saved("head", {k: v for k, v in full_checkpoint().items() if "projector.0.w" not in k}),
        None,
        "holds no matrix projector.0.weight",
    ),
    "ending": (written("weights.onnx", b"x"), None, "must end in one of .safetensors"),
    "absent": (lambda folder: folder / "absent.safetensors", None, "there is no such file"),
    "no mapping": (written("plain.pkl", pickle.dumps([1, 2])), None, "holds a list"),
    "no tensors": (written("none.pkl", pickle.dumps({"epoch": 3})), None, "no tensors by name"),
    "random": (written("random.pkl", bytes(range(200, 256))), None, "is damaged"),
    "code": (
        written("code.pkl", pickle.dumps({"model": Dangerous()})),
        None,
        r"system, which could run code",
    ),
}


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        (kind, output)
        for kind in BROKEN
        for output in ("model.safetensors", "export")
        if (kind, output) != ("head cut off", "model.safetensors")  # which needs no head
    ],
)
def test_refusals_leave_the_output_untouched(kind, output, tmp_path):
    make, arch, message = BROKEN[kind]
    source = make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "encoder.json").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / output, arch)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    assert (tmp_path / "export" / "encoder.json").read_text() == "precious"
    assert not PROOF.exists()


def test_outputs_that_cannot_be_written(tmp_path):
    source = save(tmp_path / "good.safetensors", GOOD)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photo.jpg").write_bytes(b"precious")
    (tmp_path / "folder.safetensors").mkdir()
    for output, message in (
        ("home", "a folder with other content"),
        ("model.onnx", "must end in one of"),
        ("folder.safetensors", "is a folder"),
        ("good.safetensors/export", "cannot be written"),
        ("good.safetensors/model.safetensors", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / output)
    assert (tmp_path / "home" / "photo.jpg").read_bytes() == b"precious"
    assert_same_tensors(load_file(source), GOOD)


def test_an_interrupted_write_leaves_the_output_untouched(tmp_path, monkeypatch):
    source = save(tmp_path / "good.safetensors", GOOD)
    encoder = small_encoder("resnet34")[0]
    export_encoder(tmp_path / "export", *encoder)
    before = sorted(tmp_path.rglob("*"))

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resa_jax.weights.files.save", fail)
    with pytest.raises(UserError, match="No space left"):
        convert(source, tmp_path / "model.safetensors")
    rename, failures = Path.rename, []

    def fail_once(path, target):
        if path.name == "new" and not failures:
            failures.append(path)
            fail()
        return rename(path, target)

    monkeypatch.setattr("pathlib.Path.rename", fail_once)
    with pytest.raises(UserError, match="No space left"):
        convert(source, tmp_path / "export")
    assert failures
    assert sorted(tmp_path.rglob("*")) == before
    assert read_encoder(tmp_path / "export")[0] == encoder[0]


def test_an_export_is_replaced(tmp_path):
    export_encoder(tmp_path / "export", *small_encoder("resnet34")[0])
    convert(save(tmp_path / "good.safetensors", GOOD), tmp_path / "export")
    assert read_encoder(tmp_path / "export")[0].name == "resnet18"
    assert {path.name for path in tmp_path.iterdir()} == {"export", "good.safetensors"}


def test_the_command(tmp_path):
    source = save(tmp_path / "good.safetensors", GOOD)
    command = [sys.executable, "-m", "resa_jax.convert", f"--input={source}"]

    def run(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    done = run(f"--output={tmp_path / 'out.safetensors'}")
    assert done.returncode == 0, done.stderr
    assert "loaded: 100 tensors" in done.stdout
    assert_same_tensors(load_file(tmp_path / "out.safetensors"), GOOD)
    refused = run(f"--output={tmp_path / 'export'}", "--arch=resnet50")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "nearest architecture is resnet18" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "export").exists()


def test_pytorch_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = save(tmp_path / "good.safetensors", GOOD)
    lines = convert(source, tmp_path / "export")
    assert "checked: not against PyTorch, which is not installed" in lines
    convert(tmp_path / "export", tmp_path / "out.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"x")
    for action in (
        lambda: convert(tmp_path / "weights.pth", tmp_path / "new"),
        lambda: convert(source, tmp_path / "new.pth"),
    ):
        with pytest.raises(UserError, match=r"needs PyTorch.*\.safetensors"):
            action()


def test_half_precision_is_widened(tmp_path):
    half = {name: value.astype(np.float16) for name, value in GOOD.items()}
    path = save(tmp_path / "half.safetensors", half)
    lines = convert(path, tmp_path / "export")
    assert "converted: 20 kernels transposed, 100 tensors from half precision to float32" in lines
    encoder = load_encoder(tmp_path / "export")
    assert_same_tensors(tensors_of(encoder), float32(half))


def test_float64_stays(tmp_path):
    tensors = torch_layouts.formula(IMAGENET)
    path = save(tmp_path / "double.safetensors", tensors)
    with jax.enable_x64(True):
        convert(path, tmp_path / "export")
        for source in (path, tmp_path / "export"):
            encoder = load_encoder(source)
            encodings = encoder(torch_layouts.noise((2, 64, 64, 3), 1))
            assert encodings.dtype == np.float64
            assert_same_tensors(tensors_of(encoder), tensors)
        convert(tmp_path / "export", tmp_path / "again.safetensors")
    assert_same_tensors(load_file(tmp_path / "again.safetensors"), tensors)


# With PyTorch.


@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18_cifar", "vit_s16"])
def test_features_equal_pytorchs(name, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models

    tensors = torch_layouts.formula(torch_layouts.ENCODERS[name]())
    theirs = torch_models.load(torch_models.ENCODERS[name](), tensors).eval()
    state = {f"module.momentum_encoder.{k}": v for k, v in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, tmp_path / "authors.pth.tar")
    side = 224 if name.startswith("vit") else 64
    images = torch_layouts.noise((2, side, side, 3), 4)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    with jax.enable_x64(True):
        lines = convert(tmp_path / "authors.pth.tar", tmp_path / "export", arch=name)
        encodings = np.asarray(load_encoder(tmp_path / "export")(images))
    assert np.abs(encodings - expected).max() < 1e-9 * np.abs(expected).max()
    assert any(line.endswith("epoch, optimizer") for line in lines)
    checked = next(line for line in lines if line.startswith("checked: encodings differ"))
    assert float(checked.split(" by ")[1].split()[0]) < 1e-9
    # And in float32, where most will use it.
    encodings = np.asarray(load_encoder(tmp_path / "export")(images.astype(np.float32)))
    assert np.abs(encodings - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18_cifar", "vitc_s16"])
def test_pth_opens_in_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models

    tensors = weights(torch_layouts.ENCODERS[name]())
    source = save(tmp_path / "source.safetensors", tensors)
    convert(source, tmp_path / "model.pth", arch=name)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    torch_models.ENCODERS[name]().load_state_dict(state, strict=True)
    assert_same_tensors({key: value.numpy() for key, value in state.items()}, tensors)


@pytest.mark.torch
def test_bfloat16_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value).bfloat16() for name, value in GOOD.items()}
    torch.save(state, tmp_path / "half.pt")
    file = read_tensors(tmp_path / "half.pt")
    assert file.widened == len(GOOD)
    assert_same_tensors(
        file.tensors, {name: value.float().numpy() for name, value in state.items()}
    )


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "is damaged"),
        ("text", "is damaged"),
        ("plain pickle", r"is damaged .*\(PyTorch cannot unpickle it\)"),
        ("code", r"system, which could run code"),
        ("legacy code", r"system, which could run code"),
        ("object", "fractions.Fraction, which could run code"),
        ("nan", "no finite numbers, in bn1.bias"),
    ],
)
def test_refusals_of_pth(kind, message, tmp_path):
    torch = pytest.importorskip("torch")
    import fractions

    path, output = tmp_path / "weights.pth", tmp_path / "model.safetensors"
    output.write_bytes(b"precious")
    state = {name: torch.from_numpy(value.copy()) for name, value in GOOD.items()}
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"epoch": 3}, protocol=4))
    elif kind == "legacy code":
        path.write_bytes(pickle.dumps(Dangerous(), protocol=2))
    else:
        if kind == "nan":
            state["bn1.bias"][1] = float("nan")
        extra = {"code": Dangerous(), "object": fractions.Fraction(1, 3)}.get(kind)
        torch.save({"state_dict": state} | ({"args": extra} if extra else {}), path)
        if kind == "cut":
            truncate(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        convert(path, output)
    assert output.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == before
    assert not PROOF.exists()


@pytest.mark.torch
@pytest.mark.parametrize("vit", [False, True])
def test_pretraining_goes_on_from_a_full_checkpoint(vit, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models
    import torch_resa

    from resa_jax.config import resolve
    from resa_jax.recipes import default_config
    from resa_jax.training.programs import create_step

    if vit:
        name, side, features = "vit_ti16", 32, 192
        layout = torch_layouts.vit(192, 12, 16, 2)
        create = lambda: torch_models.ViT(192, 12, 3, 16, 2)
    else:
        name, side, features = "resnet18_cifar", 16, 32
        layout = CIFAR
        create = lambda: torch_models.ResNet(False, (2, 2, 2, 2), "cifar", width=4)
    sizes = {"hidden": 16, "out": 8}
    full = {k: v.astype(np.float64) for k, v in full_checkpoint(layout, vit, features).items()}

    def part(prefix, module):
        prefix = f"module.{prefix}."
        return torch_models.load(
            module, {k.removeprefix(prefix): v for k, v in full.items() if k.startswith(prefix)}
        )

    online, momentum = (
        torch_resa.Network(
            part(f"{prefix}encoder", create()),
            part(f"{prefix}projector", torch_models.projector(vit, features, **sizes)),
            part("predictor", torch_models.predictor(vit, 8, 16)) if not prefix else None,
        ).train()
        for prefix in ("", "momentum_")
    )
    views = [torch_layouts.noise((6, side, side, 3), seed) for seed in (1, 2)]
    state = {key: torch.from_numpy(value.copy()) for key, value in full.items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "full.pth")
    expected = torch_resa.loss_of(
        online, momentum, [torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in views]
    )

    config = default_config()
    config.encoder.update({"name": name, "image_size": 32})
    config.encoder.width = None if vit else 4
    config.method.update({"predictor": True, "hidden_size": 16, "output_size": 8})
    config.ema_momentum = 1.0  # so that the step leaves the EMA networks as they are
    resolve(config)
    with jax.enable_x64(True):
        _, init, train_step = create_step(config, 1, 1)
        convert(tmp_path / "full.pth", tmp_path / "export")
        for source in (tmp_path / "full.pth", tmp_path / "export"):
            trees = jax.tree.map(jnp.asarray, read_networks(source)[1])
            state = replace(init(), **trees)
            _, metrics = jax.jit(train_step)(state, [jnp.asarray(view) for view in views])
            np.testing.assert_allclose(metrics["loss"], expected.item(), rtol=1e-9)
