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

    named = VITS[spec.name]

    def norm(name, x):
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], scale, shift, eps=named.epsilon)

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
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    n, _, width = x.shape
    head = named.width // named.heads
    heads = named.heads if width % head else width // head
    x = cat([weights["cls_token"].expand(n, -1, -1), x], dim=1)
    if "pos_embed" in weights:
        x = x + weights["pos_embed"]
    if "register_tokens" in weights:
        x = cat([x[:, :1], weights["register_tokens"].expand(n, -1, -1), x[:, 1:]], dim=1)
    turn = _turns(rows, columns, width // heads, x) if "pos_embed" not in weights else None
    index = 0
    while f"blocks.{index}.norm1.weight" in weights:
        block = f"blocks.{index}"
        qkv = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        qkv = qkv.reshape(n, x.shape[1], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv if turn is None else (turn(qkv[0]), turn(qkv[1]), qkv[2])
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + dense(f"{block}.attn.proj", y) * weights.get(f"{block}.ls1.gamma", 1)
        y = norm(f"{block}.norm2", x)
        if f"{block}.mlp.w12.weight" in weights:
            gate, value = dense(f"{block}.mlp.w12", y).chunk(2, dim=-1)
            y = dense(f"{block}.mlp.w3", gate.sigmoid() * gate * value)
        else:
            y = dense(f"{block}.mlp.fc2", gelu(dense(f"{block}.mlp.fc1", y)))
        x = x + y * weights.get(f"{block}.ls2.gamma", 1)
        index += 1
    return norm("norm", x)[:, 0]


def _turns(rows, columns, head, like):
    """DINOv3's rotation of the patches' queries and keys, as complex numbers."""
    import torch

    frequencies = 2 * torch.pi / 100 ** (torch.arange(head // 4, dtype=torch.float64) * 4 / head)
    down, right = (
        (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1 for count in (rows, columns)
    )
    down = (down[:, None, None] * frequencies).expand(rows, columns, -1)
    right = (right[None, :, None] * frequencies).expand(rows, columns, -1)
    angles = torch.cat([down, right], dim=-1).flatten(0, 1)
    turns = torch.polar(torch.ones_like(angles), angles)

    def turn(x):
        others = x.shape[2] - rows * columns
        pairs = torch.complex(*x[:, :, others:].double().chunk(2, dim=-1)) * turns
        turned = torch.cat([pairs.real, pairs.imag], dim=-1).to(like.dtype)
        return torch.cat([x[:, :, :others], turned], dim=2)

    return turn
