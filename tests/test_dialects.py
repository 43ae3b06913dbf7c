"""Public weights under other names and in other layouts are the same encoder."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layouts
from evaluation_run import initial_state
from safetensors.numpy import save_file

import resa_jax
from resa_jax.encoder import load_encoder
from resa_jax.errors import UserError
from resa_jax.models.positions import resize_positions, rotations, smooth_bicubic_matrix
from resa_jax.training.initialize import initialize_from
from resa_jax.weights.dialects import translate, unwrap
from resa_jax.weights.files import read_tensors
from resa_jax.weights.infer import infer_spec
from resa_jax.weights.sorting import sort_networks


PLAIN = torch_layouts.vit(384, 12, 16, 4)
SCALED = torch_layouts.vit(384, 12, 14, 4, scaled=True)
REGISTERS = torch_layouts.vit(384, 12, 14, 4, scaled=True, registers=4)
TURNED = torch_layouts.vit(384, 12, 16, 0, scaled=True, registers=4)
GATED = torch_layouts.vit(384, 12, 16, 0, scaled=True, registers=4, gated=1536)


def values(shapes):
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()
    }


def renamed(tensors, *pairs):
    names = {}
    for name in tensors:
        new = name
        for old, other in pairs:
            new = new.replace(old, other)
        names[new] = tensors[name]
    assert len(names) == len(tensors)
    return names


def separate(tensors, *names):
    """Queries, keys and values as three tensors, under three names."""
    found = {}
    for name, value in tensors.items():
        if ".attn.qkv." in name:
            for part, third in zip(names, np.split(value, 3), strict=True):
                found[name.replace("attn.qkv", part)] = third
        else:
            found[name] = value
    return found


def with_last_norm(tensors, prefix):
    return {re.sub(r"^norm\.", prefix, name): x for name, x in tensors.items()}


EMBEDDINGS = [
    ("cls_token", "embeddings.cls_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
]
NEW = [f"attention.{part}_proj" for part in "qkv"]
OLD = [f"attention.attention.{part}" for part in ("query", "key", "value")]


def hf_vit(tensors):
    tensors = renamed(
        separate(tensors, *OLD),
        *EMBEDDINGS,
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("blocks.", "encoder.layer."),
    )
    tensors = {
        name.replace("norm.", "layernorm.", name[:5] == "norm."): x for name, x in tensors.items()
    }
    return tensors | {"pooler.dense.weight": np.ones((3, 3))}


def hf_vit_new(tensors):
    tensors = renamed(
        separate(tensors, *NEW),
        *EMBEDDINGS,
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.o_proj"),
        ("blocks.", "layers."),
    )
    tensors = with_last_norm(tensors, "layernorm.")
    tensors = {f"vit.{name}": x for name, x in tensors.items()}
    return tensors | {
        "decoder.mask_token": np.ones((1, 1, 3)),
        "classifier.weight": np.ones((2, 3)),
    }


def hf_dinov2(tensors):
    tensors = renamed(
        separate(tensors, *OLD),
        *EMBEDDINGS,
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("attn.proj", "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("blocks.", "encoder.layer."),
    )
    tensors = {
        name.replace("norm.", "layernorm.", name[:5] == "norm."): x for name, x in tensors.items()
    }
    return tensors | {"embeddings.mask_token": np.ones((1, 384))}


def hf_dinov3(tensors):
    split = separate(tensors, *NEW)
    found = {}
    for name, value in split.items():
        if name.endswith("k_proj.bias"):
            continue
        if ".mlp.w12." in name:
            gate, up = np.split(value, 2)
            found[name.replace("w12", "gate_proj")] = gate
            found[name.replace("w12", "up_proj")] = up
        else:
            found[name] = value
    return renamed(
        found,
        *EMBEDDINGS,
        ("patch_embed.proj", "embeddings.patch_embeddings"),
        ("attn.proj", "attention.o_proj"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.fc1", "mlp.up_proj"),
        ("mlp.fc2", "mlp.down_proj"),
        ("mlp.w3", "mlp.down_proj"),
        ("blocks.", "layer."),
    )


def original_dinov3(tensors):
    found = renamed(tensors, ("register_tokens", "storage_tokens"))
    for name in [name for name in found if name.endswith("qkv.bias")]:
        third = len(found[name]) // 3
        found[f"{name}_mask"] = np.repeat(np.array([1, 0, 1], np.float32), third)
        found[name] = found[name].copy()
        found[name][third : 2 * third] = np.nan  # which nobody reads
    return found | {"rope_embed.periods": np.ones(16), "mask_token": np.ones((1, 384))}


def timm_registers(tensors):
    found = renamed(tensors, ("register_tokens", "reg_token"))
    return found | {"pos_embed": found["pos_embed"][:, 1:]}


def timm_dinov3(tensors):
    found = renamed(
        {name: x for name, x in tensors.items() if not name.endswith("qkv.bias")},
        ("register_tokens", "reg_token"),
        ("ls1.gamma", "gamma_1"),
        ("ls2.gamma", "gamma_2"),
    )
    return found


def torchvision(tensors):
    found = renamed(
        tensors,
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj", "conv_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.3"),
        ("blocks.", "encoder.layers.encoder_layer_"),
    )
    found = {
        name.replace("norm.", "encoder.ln.", name[:5] == "norm."): x for name, x in found.items()
    }
    return found | {"heads.head.weight": np.ones((3, 3))}


def chunked_dinov2(tensors):
    return {
        f"backbone.{name}".replace("blocks.", f"blocks.{i % 3}."): x
        for i, (name, x) in enumerate(tensors.items())
    }


def no_key_bias(tensors):
    found = dict(tensors)
    for name in [name for name in found if name.endswith("qkv.bias")]:
        found[name] = found[name].copy()
        found[name][384 : 2 * 384] = 0
    return found


def no_bias(tensors):
    return {name: 0 * x if name.endswith("qkv.bias") else x for name, x in tensors.items()}


def no_cls_position(tensors):
    return tensors | {
        "pos_embed": np.concatenate(
            [np.zeros_like(tensors["pos_embed"][:, :1]), tensors["pos_embed"][:, 1:]], axis=1
        )
    }


same = lambda tensors: tensors


@pytest.mark.parametrize(
    "shapes, dialect, meant, name",
    [
        (PLAIN, hf_vit, same, "vit_s16"),
        (PLAIN, hf_vit_new, same, "vit_s16"),
        (PLAIN, torchvision, same, "vit_s16"),
        (SCALED, hf_dinov2, same, "dinov2_s14"),
        (SCALED, chunked_dinov2, same, "dinov2_s14"),
        (REGISTERS, hf_dinov2, same, "dinov2_s14_reg4"),
        (REGISTERS, timm_registers, no_cls_position, "dinov2_s14_reg4"),
        (TURNED, hf_dinov3, no_key_bias, "dinov3_s16"),
        (GATED, hf_dinov3, no_key_bias, "dinov3_s16plus"),
        (TURNED, original_dinov3, no_key_bias, "dinov3_s16"),
        (TURNED, timm_dinov3, no_bias, "dinov3_s16"),
    ],
)
def test_the_same_encoder_under_other_names(shapes, dialect, meant, name, tmp_path):
    tensors, path = values(shapes), tmp_path / "theirs.safetensors"
    save_file({k: np.ascontiguousarray(x) for k, x in dialect(tensors).items()}, path)
    (found,) = sort_networks(read_tensors(path)).networks.values()
    assert infer_spec(path, found, None, full=False).name == name
    expected = meant(tensors)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


RESNET = torch_layouts.resnet(False, (2, 2, 2, 2), 7, 4)


def hugging_face_resnet(name):
    """ResNetModel's name of torchvision's."""
    parts = name.split(".")
    kind = {"conv": "convolution", "bn": "normalization"}
    if not name.startswith("layer"):
        return f"embedder.embedder.{kind[parts[0][:-1]]}.{parts[1]}"
    stage, block, layer, *rest = parts
    block = f"encoder.stages.{int(stage[5:]) - 1}.layers.{block}"
    if layer == "downsample":
        return f"{block}.shortcut.{('convolution', 'normalization')[int(rest[0])]}.{rest[1]}"
    return f"{block}.layer.{int(layer[-1]) - 1}.{kind[layer[:-1]]}.{rest[0]}"


WRAPPINGS = {
    "MoCo": lambda x: {
        **{f"module.encoder_q.{k}": v for k, v in x.items()},
        **{f"module.encoder_k.{k}": v + 1 for k, v in x.items()},
        "module.encoder_q.fc.0.weight": np.ones((3, 3)),
        "module.queue": np.ones((3, 3)),
        "module.queue_ptr": np.ones(1),
    },
    "SwAV": lambda x: {
        **{f"module.{k}": v for k, v in x.items()},
        "module.projection_head.0.weight": np.ones((3, 3)),
        "module.prototypes.weight": np.ones((3, 3)),
    },
    "Barlow Twins": lambda x: {
        **{f"module.backbone.{k}": v for k, v in x.items()},
        "module.projector.0.weight": np.ones((3, 3)),
        "module.bn.running_mean": np.ones(3),
    },
    "solo-learn": lambda x: {
        **{f"backbone.{k}": v for k, v in x.items()},
        **{f"momentum_backbone.{k}": v + 1 for k, v in x.items()},
        "classifier.weight": np.ones((3, 3)),
        "momentum_projector.0.weight": np.ones((3, 3)),
        "projector.0.weight": np.ones((3, 3)),
    },
    "mmpretrain": lambda x: {
        **{f"backbone.{k}": v for k, v in x.items()},
        **{f"target_net.module.0.{k}": v + 1 for k, v in x.items()},
        "neck.fc.weight": np.ones((3, 3)),
        "head.predictor.weight": np.ones((3, 3)),
    },
    "compiled": lambda x: {f"_orig_mod.model.{k}": v for k, v in x.items()},
    "transformers, a classifier": lambda x: {
        **{f"resnet.{hugging_face_resnet(k)}": v for k, v in x.items()},
        "classifier.1.weight": np.ones((3, 3)),
    },
    "DINO": lambda x: {
        **{f"student.module.backbone.{k}": v for k, v in x.items()},
        **{f"teacher.backbone.{k}": v + 1 for k, v in x.items()},
        "student.module.head.mlp.0.weight": np.ones((3, 3)),
        "teacher.head.mlp.0.weight": np.ones((3, 3)),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_come_off(wrapping, tmp_path):
    tensors = values(RESNET)
    wrapped = WRAPPINGS[wrapping](tensors)
    path = tmp_path / "weights.safetensors"
    save_file({k: np.asarray(v, np.float32) for k, v in wrapped.items()}, path)
    checkpoint = sort_networks(read_tensors(path))
    has_ema = wrapping in ("MoCo", "solo-learn", "mmpretrain", "DINO")
    online = checkpoint.networks["encoder" if has_ema or wrapping == "Barlow Twins" else ""]
    assert {
        name: x for name, x in online.items() if not name.startswith("fc.")
    }.keys() == tensors.keys()
    np.testing.assert_array_equal(online["conv1.weight"], tensors["conv1.weight"])
    if has_ema:
        ema = checkpoint.networks["ema encoder"]
        np.testing.assert_array_equal(ema["conv1.weight"], tensors["conv1.weight"] + 1)
    encoder = load_encoder(path, network="online" if has_ema else "ema")
    kernel = encoder.params["encoder"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.slow
def test_pretraining_goes_on_from_dinov2(tmp_path):
    """From a folder of Hugging Face's, at another image size than the weights'."""
    released = {"model_type": "dinov2", "num_attention_heads": 6, "hidden_size": 384}
    folder_of(tmp_path, released, shapes=SCALED)
    changes = {"encoder.name": "dinov2_s14", "encoder.image_size": 28, "encoder.width": None}
    changes |= {"data.mean": (0.5,) * 3, "data.std": (0.5,) * 3}
    config = resa_jax.get_config("digits:smoke", init_from=str(tmp_path), **changes)
    state = initialize_from(config, initial_state(config, 0)[1])
    theirs = load_encoder(tmp_path).params["encoder"]
    table = resize_positions(theirs.pop("pos_embed"), 2, 2)
    for trees in (state.params, state.ema_params):
        ours = dict(trees["encoder"])
        np.testing.assert_allclose(ours.pop("pos_embed"), table, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, theirs, ours)


@pytest.mark.torch
def test_dinos_full_checkpoint(tmp_path):
    import argparse

    import torch

    tensors = {name: torch.from_numpy(x) for name, x in values(RESNET).items()}
    both = {
        "student": {f"module.backbone.{name}": x for name, x in tensors.items()},
        "teacher": {f"backbone.{name}": x + 1 for name, x in tensors.items()},
        "args": argparse.Namespace(arch="resnet18"),
        "epoch": 100,
    }
    torch.save(both, tmp_path / "full.ckpt")
    kernels = [
        load_encoder(tmp_path / "full.ckpt", network=network).params["encoder"]["conv1"]["kernel"]
        for network in ("online", "ema")
    ]
    np.testing.assert_allclose(kernels[1] - kernels[0], 1, atol=1e-6)


def test_names_say_of_which_network_they_are():
    assert unwrap("module.encoder_k.layer1.0.conv1.weight") == (
        "ema encoder",
        "layer1.0.conv1.weight",
    )
    assert unwrap("encoder.layer.3.norm1.weight") == ("", "encoder.layer.3.norm1.weight")
    assert unwrap("model.layer.3.norm1.weight") == ("", "model.layer.3.norm1.weight")
    assert unwrap("teacher.backbone.cls_token") == ("ema encoder", "cls_token")


def test_packed_gates_of_timm():
    tensors = {
        "blocks.0.mlp.fc1.weight": np.ones((8, 6)),
        "blocks.0.mlp.fc2.weight": np.ones((6, 4)),
    }
    assert set(translate(tensors)[0]) == {"blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"}


def folder_of(tmp_path, config, preprocessor=None, shapes=PLAIN):
    save_file(values(shapes), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path


def test_a_folders_configuration_gives_the_statistics(tmp_path):
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    config = {"model_type": "vit", "num_attention_heads": 6, "hidden_size": 384}
    encoder = load_encoder(folder_of(tmp_path, config, half))
    assert (encoder.spec.mean, encoder.spec.std) == ((0.5,) * 3, (0.5,) * 3)
    timm = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {"mean": [0.1] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    assert load_encoder(tmp_path).spec.mean == (0.1,) * 3


@pytest.mark.parametrize(
    "config, preprocessor, size, resize",
    [
        ({"model_type": "resnet"}, None, 224, 256),
        ({"model_type": "resnet"}, {"size": {"shortest_edge": 32}}, 32, None),
        ({"model_type": "resnet"}, {"size": {"height": 288, "width": 288}}, 288, 329),
        ({"model_type": "resnet"}, {"size": 256, "crop_size": {"height": 224}}, 224, 256),
        (
            {"model_type": "resnet"},
            {"size": 64, "crop_size": 32, "do_center_crop": False},
            64,
            None,
        ),
        ({"model_type": "resnet", "image_size": 48}, {"size": "large"}, 48, None),
        (
            {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 64, 64]}},
            None,
            64,
            None,
        ),
    ],
)
def test_a_folders_configuration_gives_the_image_size(config, preprocessor, size, resize, tmp_path):
    spec = load_encoder(folder_of(tmp_path, config, preprocessor, shapes=RESNET)).spec
    assert (spec.image_size, spec.resize) == (size, resize)


def test_the_number_of_heads_decides(tmp_path):
    config = {"model_type": "vit", "num_attention_heads": 12, "hidden_size": 384}
    assert load_encoder(folder_of(tmp_path, config)).spec.name == "vit_s16_mocov3"
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(UserError, match="has 3 heads; a vit_s16 has 6"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"architecture": "resnetaa50"}, "its architecture is resnetaa50, which is not known"),
        ({"architecture": "resnetblur50.bt_in1k"}, "resnetblur50.bt_in1k, which is not known"),
        ({"model_type": "swin"}, "its model_type is 'swin'; known here are deit, dinov2"),
        ({}, "its model_type is None"),
    ],
)
def test_architectures_that_no_tensor_tells_are_refused(config, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_encoder(folder_of(tmp_path, config, shapes=RESNET))


def test_rotations_turn_patches_alone_and_keep_lengths():
    cosines, sines = rotations(2, 3, 16, 5)
    assert cosines.shape == sines.shape == (11, 16)
    np.testing.assert_array_equal(cosines[:5], 1)
    np.testing.assert_array_equal(sines[:5], 0)
    np.testing.assert_allclose(cosines**2 + sines**2, 1)


def test_smooth_interpolation_keeps_constants_and_lines():
    matrix = smooth_bicubic_matrix(37, 16)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    line = matrix @ np.arange(37)
    np.testing.assert_allclose(np.diff(line)[3:-3], 37 / 16, rtol=0.01)
    table = jnp.ones((1, 1 + 37 * 37, 2))
    np.testing.assert_allclose(resize_positions(table, 16, 16, smooth=True), 1, atol=1e-6)


@pytest.mark.torch
def test_smooth_interpolation_is_pytorchs():
    import torch

    for n_in, n_out in ((37, 16), (16, 37), (37, 32)):
        line = torch.eye(n_in)[:, None, None]  # each place in turn, as an image of one row
        resized = torch.nn.functional.interpolate(
            line.expand(-1, 1, 4, -1), size=(4, n_out), mode="bicubic", antialias=True
        )
        expected = resized[:, 0, 0].T.numpy()
        np.testing.assert_allclose(smooth_bicubic_matrix(n_in, n_out), expected, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("shapes", [PLAIN, SCALED, REGISTERS, TURNED, GATED])
def test_encodings_are_those_of_pytorchs_functions(shapes, tmp_path):
    pytest.importorskip("torch")
    from resa_jax.weights.torch_forward import torch_encodings

    tensors = values(shapes)
    save_file(tensors, tmp_path / "weights.safetensors")
    encoder = load_encoder(tmp_path / "weights.safetensors")
    patch = shapes["patch_embed.proj.weight"][2]
    images = np.random.default_rng(1).normal(size=(2, 4 * patch, 4 * patch, 3)).astype(np.float32)
    expected = torch_encodings(encoder.spec, tensors, images)
    ours = np.asarray(encoder(images))
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.torch
@pytest.mark.parametrize(
    "kind, whole",
    [
        *((kind, False) for kind in ("vit", "vit_mae", "dinov2", "registers", "dinov3", "gated")),
        *((kind, True) for kind in ("vit", "vit_mae", "dinov2", "registers")),
    ],
)
def test_encodings_are_those_of_hugging_face(kind, whole, tmp_path):
    """At random weights; `whole`: with what it was trained by, a classifier or a decoder."""
    transformers = pytest.importorskip("transformers")
    import torch

    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
    scale = {"layerscale_value": 0.3}
    config, model, side = {
        "vit": ("ViTConfig", "ViTModel", 64),
        "vit_mae": ("ViTMAEConfig", "ViTMAEModel", 64),
        "dinov2": ("Dinov2Config", "Dinov2Model", 70),
        "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", 70),
        "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", 64),
        "gated": ("DINOv3ViTConfig", "DINOv3ViTModel", 64),
    }[kind]
    if side == 64:
        sizes |= {"intermediate_size": 1536, "patch_size": 16, "layer_norm_eps": 1e-6}
    if kind in ("dinov2", "registers"):
        sizes |= {"patch_size": 14} | scale
    if kind in ("dinov3", "gated"):
        sizes |= {"num_register_tokens": 4, "layer_norm_eps": 1e-5} | scale
    if kind == "gated":
        sizes |= {"use_gated_mlp": True, "hidden_act": "silu"}
    if kind == "vit_mae":
        sizes |= {"mask_ratio": 0.0}
    torch.manual_seed(0)
    if whole:
        task = "ForPreTraining" if kind == "vit_mae" else "ForImageClassification"
        model = model.replace("Model", task)
    saved = getattr(transformers, model)(
        getattr(transformers, config)(image_size=side, **sizes)
    ).eval()
    theirs = saved.base_model if whole else saved
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if value.ndim == 2:
                value.mul_(3)
            elif "layer_scale" not in name:
                value.add_(0.1 * torch.randn_like(value))
        images = torch.randn(2, 3, side, side)
        order = {"noise": torch.arange(16.0).repeat(2, 1)} if kind == "vit_mae" else {}
        expected = theirs(images, **order).last_hidden_state[:, 0].numpy()
    saved.save_pretrained(tmp_path)
    ours = np.asarray(load_encoder(tmp_path)(images.permute(0, 2, 3, 1).numpy()))
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
