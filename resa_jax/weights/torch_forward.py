"""The encoders once more, in PyTorch's functions, straight from tensors by PyTorch's names.

A conversion is checked against it where PyTorch is installed: it shares nothing with our networks,
neither layers nor layouts.
"""

from collections.abc import Mapping

import numpy as np

from resa_jax.models.spec import EncoderSpec
from resa_jax.models.vit import VITS


def torch_encodings(
    spec: EncoderSpec, tensors: Mapping[str, np.ndarray], images: np.ndarray
) -> np.ndarray:
    """Encodings [n, d] of images [n, h, w, 3] in evaluation mode, computed by PyTorch.

    Args:
      spec: of an encoder whose tensors have torchvision's (ResNets) or timm's (ViTs) names.
      images: of the encoder's size for a ViT; in the dtype to compute in.
    """
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        weights = {name: torch.from_numpy(value).to(x.dtype) for name, value in tensors.items()}
        forward = _vit if spec.family == "vit" else _resnet
        return forward(spec, weights, x).numpy()


def _batch_norm(weights, name, x):
    from torch.nn.functional import batch_norm

    leaves = ("running_mean", "running_var", "weight", "bias")
    return batch_norm(x, *(weights[f"{name}.{leaf}"] for leaf in leaves))


def _resnet(spec, weights, x):
    from torch.nn.functional import conv2d, max_pool2d, pad

    def conv(name, x, stride=1):
        kernel = weights[f"{name}.weight"]
        return conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    imagenet_stem = weights["conv1.weight"].shape[2] == 7
    if spec.name == "resnet18_cifar":
        x = pad(x, (1, 1, 1, 1))
    x = _batch_norm(weights, "bn1", conv("conv1", x, 2 if imagenet_stem else 1)).relu()
    if imagenet_stem:
        x = max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(1, 5):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in weights:
            block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            last = 3 if f"{block}.conv3.weight" in weights else 2
            y = x
            for number in range(1, last + 1):
                # The stride is in the first 3x3 convolution.
                strided = number == (2 if last == 3 else 1)
                y = conv(f"{block}.conv{number}", y, stride if strided else 1)
                y = _batch_norm(weights, f"{block}.bn{number}", y)
                y = y.relu() if number < last else y
            if f"{block}.downsample.0.weight" in weights:
                x = conv(f"{block}.downsample.0", x, stride)
                x = _batch_norm(weights, f"{block}.downsample.1", x)
            x = (x + y).relu()
            index += 1
    return x.mean((2, 3))


def _vit(spec, weights, x):
    from torch import cat
    from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

    def norm(name, x):
        return layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6
        )

    def dense(name, x):
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    stem, place = "patch_embed.proj", 0
    while f"{stem}.{place + 1}.weight" in weights:  # a convolution and a BatchNorm, then a ReLU
        x = conv2d(x, weights[f"{stem}.{place}.weight"], stride=2, padding=1)
        x = _batch_norm(weights, f"{stem}.{place + 1}", x).relu()
        place += 3
    last = f"{stem}.{place}" if place else stem
    kernel = weights[f"{last}.weight"]
    x = conv2d(x, kernel, weights[f"{last}.bias"], stride=kernel.shape[2])
    x = x.flatten(2).transpose(1, 2)
    n, patches, width = x.shape
    named = VITS[spec.name]
    head = named.width // named.heads
    heads = named.heads if width % head else width // head
    x = cat([weights["cls_token"].expand(n, -1, -1), x], dim=1) + weights["pos_embed"]
    index = 0
    while f"blocks.{index}.norm1.weight" in weights:
        block = f"blocks.{index}"
        qkv = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        qkv = qkv.reshape(n, patches + 1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(n, patches + 1, width)
        x = x + dense(f"{block}.attn.proj", y)
        y = gelu(dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + dense(f"{block}.mlp.fc2", y)
        index += 1
    return norm("norm", x)[:, 0]
