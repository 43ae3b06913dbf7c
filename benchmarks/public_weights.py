"""Encodings of public architectures at random weights, against the modules that define them.

python -m benchmarks.public_weights --output=FILE.json

Needs torch, transformers and timm. Each module of these libraries gets random weights, is saved as
they save it, and read by `resa_jax.load_encoder`; the error is the largest difference of the
encodings of two random images, relative to the largest encoding. What is refused is there with its
sentence. ResNets in the wrappers of training scripts have torchvision's names in timm's module.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags

from resa_jax.cli import run


_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)

_VITS = (
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
    *("vit_small_patch8_224", "vit_small_patch32_224", "vit_small_patch16_224.dino"),
    *("deit3_small_patch16_224", "deit3_base_patch16_224"),
    *("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch14_dinov2"),
    *("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"),
    *("deit_small_distilled_patch16_224", "beit_base_patch16_224", "vit_base_patch16_clip_224"),
    *("vit_relpos_small_patch16_224", "vit_small_patch16_rope_224"),
)
_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet26", "resnet50d", "resnet50_gn"),
    *("wide_resnet50_2", "resnext50_32x4d", "resnetaa50", "resnetblur50", "seresnet50"),
)
_WRAPPERS: dict[str, Callable[[str], str]] = {
    "DistributedDataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "MoCo v2": lambda name: f"module.encoder_q.{name}",
    "solo-learn, mmpretrain": lambda name: f"backbone.{name}",
    "Barlow Twins, VICReg": lambda name: f"module.backbone.{name}",
    "Lightning": lambda name: f"model.{name}",
}


def main(arguments: list[str]) -> None:
    """Tries every architecture and writes the table."""
    del arguments
    import torch

    torch.manual_seed(0)
    rows = [_row(*case) for case in (*_hugging_face(), *_timm())]
    result = {
        "benchmark": "public_weights",
        **{name: version(name) for name in ("jax", "torch", "transformers", "timm", "resa_jax")},
        "rows": rows,
    }
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def _hugging_face() -> Iterator[tuple]:
    import transformers

    small = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
    plain = small | {"intermediate_size": 1536, "layer_norm_eps": 1e-6, "image_size": 64}
    dinov2 = small | {"image_size": 70, "patch_size": 14, "layerscale_value": 0.3}
    dinov3 = small | {"image_size": 64, "intermediate_size": 1536, "num_register_tokens": 4}
    dinov3 |= {"layerscale_value": 0.3}
    gated = dinov3 | {"use_gated_mlp": True, "hidden_act": "silu"}
    for family, kind, sizes in (
        ("ViT", "ViT", plain),
        ("ViT, 12 heads", "ViT", plain | {"num_attention_heads": 12}),
        ("ViT, 3 heads", "ViT", plain | {"num_attention_heads": 3}),
        ("ViT, 10 blocks", "ViT", plain | {"num_hidden_layers": 10}),
        ("MAE", "ViTMAE", plain | {"mask_ratio": 0.0}),
        ("DINOv2", "Dinov2", dinov2),
        ("DINOv2 with registers", "Dinov2WithRegisters", dinov2),
        ("DINOv3", "DINOv3ViT", dinov3),
        ("DINOv3, gated", "DINOv3ViT", gated),
    ):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        model = getattr(transformers, f"{kind}Model")(config)
        side = sizes["image_size"]
        patches = (side // 16) ** 2

        def encode(model, images, mae=kind == "ViTMAE", patches=patches):
            import torch

            order = {"noise": torch.arange(float(patches)).repeat(2, 1)} if mae else {}
            return model(images, **order).last_hidden_state[:, 0]

        yield f"transformers, {family}", model, side, encode, lambda m, d: m.save_pretrained(d)


def _timm() -> Iterator[tuple]:
    import timm

    def encode(model, images):
        features = model.forward_features(images)
        return features[:, 0] if features.ndim == 3 else features.mean((2, 3))

    def save(model, folder, rename=lambda name: name):
        from safetensors.torch import save_file

        tensors = {rename(name): x.contiguous() for name, x in model.state_dict().items()}
        save_file(tensors, str(folder / "model.safetensors"))

    def released(model, folder):
        save(model, folder)
        config = {"architecture": model.default_cfg["architecture"], "pretrained_cfg": {}}
        (folder / "config.json").write_text(json.dumps(config))

    for name in _VITS:
        side = 70 if "patch14" in name else 64
        yield f"timm, {name}", timm.create_model(name, img_size=side), side, encode, save
    for name in _RESNETS:
        yield f"timm, {name}", timm.create_model(name), 64, encode, released
    for name, rename in _WRAPPERS.items():
        wrapped = lambda model, folder, rename=rename: save(model, folder, rename)
        yield f"{name}, resnet18", timm.create_model("resnet18"), 64, encode, wrapped


def _row(title: str, model: Any, side: int, encode: Callable, save: Callable) -> dict:
    import numpy as np
    import torch

    import resa_jax

    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for name, value in model.named_parameters():
            if value.ndim >= 2 and "token" not in name and "pos" not in name:
                value.mul_(2)
            elif "gamma" not in name and "layer_scale" not in name:
                value.add_(0.1 * torch.randn_like(value))
        images = torch.randn(2, 3, side, side)
        expected = encode(model, images).numpy()
        save(model, Path(folder))
        source = Path(folder)
        if not (source / "config.json").is_file():
            source /= "model.safetensors"
        row = {"architecture": title, "read_as": None, "error": None, "refusal": None}
        try:
            encoder = resa_jax.load_encoder(source)
        except resa_jax.UserError as refusal:
            row["refusal"] = str(refusal).replace(f"{folder}/", "")
        else:
            ours = np.asarray(encoder(images.permute(0, 2, 3, 1).numpy()))
            row["read_as"] = encoder.spec.name
            row["error"] = float(np.abs(ours - expected).max() / np.abs(expected).max())
    print(json.dumps(row)[:200], flush=True)
    return row


if __name__ == "__main__":
    run(main)
