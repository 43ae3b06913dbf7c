"""A folder that timm or transformers loads by itself: weights, a config.json, a model card."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resa_jax.errors import UserError
from resa_jax.image_size import size_in_words
from resa_jax.models.resnet import RESNETS, Bottleneck
from resa_jax.models.spec import EncoderSpec, is_small, usual_resize
from resa_jax.models.vit import VITS
from resa_jax.weights.files import write_tensors


LAYOUTS = ("timm", "transformers")
# Of both libraries; what is left out is not there, or not known to be alike.
_TIMM_VITS = {
    "vit_ti16": "vit_tiny_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_s16_mocov3": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_h14": "vit_huge_patch14_224",
    "deit3_s16": "deit3_small_patch16_224",
    "deit3_b16": "deit3_base_patch16_224",
    "deit3_l16": "deit3_large_patch16_224",
    "dinov2_s14": "vit_small_patch14_dinov2",
    "dinov2_b14": "vit_base_patch14_dinov2",
    "dinov2_l14": "vit_large_patch14_dinov2",
}
_TRANSFORMERS = {
    "vit": ("vit_ti16", "vit_s16", "vit_s16_mocov3", "vit_b16", "vit_l16", "vit_h14"),
    "dinov2": ("dinov2_s14", "dinov2_b14", "dinov2_l14"),
    "resnet": tuple(RESNETS),
}
# From timm's names to those of the hub, which every version of transformers reads.
_VIT_NAMES = [
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^norm\.", "layernorm."),
]
_PLAIN_NAMES = [
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
_RESNET_NAMES = [
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."),
    (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
]


def write_release(
    folder: Path,
    layout: str,
    spec: EncoderSpec,
    tensors: dict[str, np.ndarray],
    facts: dict[str, str],
) -> None:
    """Writes the folder, which must be new, whole or not at all.

    Args:
      layout: one of LAYOUTS.
      tensors: by torchvision's or timm's names.
      facts: rows of the model card, by their titles.

    Raises:
      UserError: the library has no such architecture, or reads no such images.
    """
    check_release(layout, spec)
    final, folder = folder, folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = "timm" if layout == "timm" else _kind(spec.name)
    named = _to_timm(spec, tensors) if kind == "timm" else _to_transformers(kind, tensors)
    write_tensors(folder / "model.safetensors", named, dataclasses.asdict(spec))
    if layout == "timm":
        _write_json(folder / "config.json", _timm_config(spec))
        use = (
            "    import timm\n\n"
            '    encoder = timm.create_model("local-dir:FOLDER", pretrained=True)\n'
        )
    else:
        _write_json(folder / "config.json", _transformers_config(kind, spec))
        _write_json(folder / "preprocessor_config.json", _preprocessor(spec))
        use = (
            "    from transformers import AutoImageProcessor, AutoModel\n\n"
            '    encoder = AutoModel.from_pretrained("FOLDER")\n'
            '    processor = AutoImageProcessor.from_pretrained("FOLDER")\n'
        )
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    (folder / "README.md").write_text(
        f"---\nlibrary_name: {layout}\ntags: [self-supervised-learning, feature-extraction]\n---\n"
        f"# {spec.name}\n\nAn image encoder without a head, written by resa_jax.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n{use}",
        encoding="utf-8",
    )
    folder.rename(final)


def check_release(layout: str, spec: EncoderSpec) -> None:
    """Raises a `UserError` where the library has no such encoder."""
    known = {*_TIMM_VITS, *RESNETS} if layout == "timm" else {*sum(_TRANSFORMERS.values(), ())}
    if spec.name not in known:
        raise UserError(
            f"--layout={layout} is not written for {spec.name}; it is for "
            f"{', '.join(sorted(known))}."
        )
    if spec.name in RESNETS and spec.width not in (None, 64) and layout == "timm":
        raise UserError(f"--layout=timm is not written for a {spec.name} of width {spec.width}.")
    if spec.bits != 8:
        raise UserError(f"--layout={layout} is for images of 8 bits, not of {spec.bits}.")


def _kind(name: str) -> str:
    return next(kind for kind, names in _TRANSFORMERS.items() if name in names)


def _sizes(spec: EncoderSpec) -> dict[str, int]:
    size = VITS[spec.name]
    width = spec.width or size.width
    head = size.width // size.heads
    return {
        "width": width,
        "depth": spec.depth or size.depth,
        "heads": size.heads if width % head else width // head,
        "patch": spec.patch_size or size.patch_size,
    }


def _timm_config(spec: EncoderSpec) -> dict[str, Any]:
    model: dict[str, Any] = {"in_chans": spec.channels}
    if spec.name in VITS:
        sizes = _sizes(spec)
        model |= {"embed_dim": sizes["width"], "depth": sizes["depth"], "num_heads": sizes["heads"]}
        model |= {"patch_size": sizes["patch"], "img_size": spec.image_size, "fc_norm": False}
        model["global_pool"] = "token"
    resize = spec.resize or usual_resize(spec.image_size)
    return {
        "architecture": _TIMM_VITS.get(spec.name, spec.name),
        "num_classes": 0,
        "num_features": spec.create().num_features,
        "model_args": model,
        "pretrained_cfg": {
            "input_size": [spec.channels, *spec.height_width],
            "interpolation": "bicubic",
            "crop_pct": min(spec.height_width) / resize,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj" if spec.name in VITS else "conv1",
        },
    }


def _transformers_config(kind: str, spec: EncoderSpec) -> dict[str, Any]:
    common = {"model_type": kind, "num_channels": spec.channels}
    if kind == "resnet":
        block, stages = RESNETS[spec.name]
        bottleneck, width = block is Bottleneck, spec.width or 64
        widths = [width * 2**stage * (4 if bottleneck else 1) for stage in range(4)]
        return common | {
            "architectures": ["ResNetModel"],
            "embedding_size": width,
            "hidden_sizes": widths,
            "depths": list(stages),
            "layer_type": "bottleneck" if bottleneck else "basic",
            "hidden_act": "relu",
        }
    sizes, size = _sizes(spec), VITS[spec.name]
    config = common | {
        "architectures": ["ViTModel" if kind == "vit" else "Dinov2Model"],
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "patch_size": sizes["patch"],
        "image_size": spec.image_size,
        "layer_norm_eps": size.epsilon,
        "qkv_bias": True,
        "hidden_act": "gelu",
    }
    return config | (
        {"intermediate_size": 4 * sizes["width"]} if kind == "vit" else {"mlp_ratio": 4}
    )


def _preprocessor(spec: EncoderSpec) -> dict[str, Any]:
    resize = spec.resize or usual_resize(spec.image_size)
    height, width = spec.height_width
    resized: dict[str, int] = {"shortest_edge": resize}
    if height != width:  # no processor covers a shape: images of another are stretched
        scale = resize / min(height, width)
        resized = {"height": round(scale * height), "width": round(scale * width)}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": resized,
        "resample": 3,  # bicubic
        "do_center_crop": not is_small(spec.image_size) or resize != min(height, width),
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": spec.channels == 3,
    }


def _to_timm(spec: EncoderSpec, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not spec.name.startswith("deit3"):
        return tensors
    # DeiT III adds positions to the patches alone: that of [CLS] becomes part of it.
    table = tensors["pos_embed"]
    return tensors | {
        "cls_token": tensors["cls_token"] + table[:, :1],
        "pos_embed": np.ascontiguousarray(table[:, 1:]),
    }


def _to_transformers(kind: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rules: list[tuple[str, Any]] = _RESNET_NAMES if kind == "resnet" else _VIT_NAMES
    if kind == "vit":
        rules = rules + _PLAIN_NAMES
    if kind == "dinov2":
        rules = [*rules, (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1")]
    separate: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                separate[name.replace(".qkv.", f".{part}.")] = third
        else:
            separate[name] = value
    renamed = {}
    for name, value in separate.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = np.ascontiguousarray(value)
    if kind == "resnet":  # PyTorch's BatchNorm counts its batches
        means = [name for name in renamed if name.endswith("running_mean")]
        counters = [name.replace("running_mean", "num_batches_tracked") for name in means]
        renamed |= {name: np.zeros((), np.int64) for name in counters}
    if kind == "dinov2":
        width = tensors["cls_token"].shape[-1]
        renamed["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    return renamed


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class RunFacts(NamedTuple):
    """A run's configuration, and the results of its evaluations by their names."""

    config: ConfigDict
    evaluations: dict[str, dict]


def card_facts(spec: EncoderSpec, source: str, run: RunFacts | None) -> dict[str, str]:
    """Rows of a model card.

    Args:
      source: where the weights come from.
      run: the run that they come from, where there was one.
    """
    facts = {"Architecture": spec.name, "Images": size_in_words(spec.image_size)}
    facts |= {name: ", ".join(map(str, getattr(spec, name))) for name in ("mean", "std")}
    if run is None:
        return facts | {"Converted from": source}
    config = run.config
    facts["Method"] = config.method.name
    facts["Trained on"] = config.data.source
    length = f"{config.steps} steps" if config.steps else f"{config.epochs} epochs"
    facts["Length"] = f"{length} of batches of {config.batch_size}"
    for name, result in run.evaluations.items():
        scores = result.get("results", {})
        for row, values in scores.items():
            text = ", ".join(
                f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, int | float)
            )
            facts[f"{name}, {row}"] = text
    return facts
