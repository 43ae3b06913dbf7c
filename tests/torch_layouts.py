"""Names and shapes of PyTorch's tensors, stated without the package, and values by formula.

ResNets as torchvision and the authors name them, ViTs as timm and the authors do, heads as the
authors' `nn.Sequential`s. Needs NumPy alone.
"""

import math

import numpy as np


def batch_norm(prefix, features, affine=True):
    names = ("weight", "bias") if affine else ()
    return {f"{prefix}.{name}": (features,) for name in (*names, "running_mean", "running_var")}


def linear(prefix, out_features, in_features):
    return {f"{prefix}.weight": (out_features, in_features), f"{prefix}.bias": (out_features,)}


def resnet(bottleneck, stages, kernel, width=64):
    """Shapes by name of a ResNet without its classifier."""
    shapes = {"conv1.weight": (width, 3, kernel, kernel)} | batch_norm("bn1", width)
    channels = width
    for stage, blocks in enumerate(stages, start=1):
        inner = width * 2 ** (stage - 1)
        outer = 4 * inner if bottleneck else inner
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            if bottleneck:
                convs = [(inner, channels, 1), (inner, inner, 3), (outer, inner, 1)]
            else:
                convs = [(inner, channels, 3), (inner, inner, 3)]
            for number, (out, into, size) in enumerate(convs, start=1):
                shapes[f"{block}.conv{number}.weight"] = (out, into, size, size)
                shapes |= batch_norm(f"{block}.bn{number}", out)
            if index == 0 and (stage > 1 or channels != outer):
                shapes[f"{block}.downsample.0.weight"] = (outer, channels, 1, 1)
                shapes |= batch_norm(f"{block}.downsample.1", outer)
            channels = outer
    return shapes


def vit(width, depth, patch, grid, conv_stem=False, *, scaled=False, registers=0, gated=0):
    """Shapes by name of a ViT without its head.

    grid: 0 for one without a position table; scaled: with LayerScale; gated: the width of SwiGLU.
    """
    shapes = {"cls_token": (1, 1, width)}
    if grid:
        shapes["pos_embed"] = (1, grid * grid + 1, width)
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    if conv_stem:
        channels, layers = 3, int(math.log2(patch))
        for index in range(layers):
            features = width // 2 ** (layers - 1 - index)
            shapes[f"patch_embed.proj.{3 * index}.weight"] = (features, channels, 3, 3)
            shapes |= batch_norm(f"patch_embed.proj.{3 * index + 1}", features)
            channels = features
        shapes[f"patch_embed.proj.{3 * layers}.weight"] = (width, channels, 1, 1)
        shapes[f"patch_embed.proj.{3 * layers}.bias"] = (width,)
    else:
        shapes["patch_embed.proj.weight"] = (width, 3, patch, patch)
        shapes["patch_embed.proj.bias"] = (width,)
    for index in range(depth):
        block = f"blocks.{index}"
        shapes |= {f"{block}.norm1.weight": (width,), f"{block}.norm1.bias": (width,)}
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.norm2.weight": (width,), f"{block}.norm2.bias": (width,)}
        if scaled:
            shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        if gated:
            shapes |= linear(f"{block}.mlp.w12", 2 * gated, width)
            shapes |= linear(f"{block}.mlp.w3", width, gated)
            continue
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def projector(vit, in_features, hidden=2048, out=512):
    if vit:
        return (
            linear("0", hidden, in_features)
            | linear("2", hidden, hidden)
            | linear("4", out, hidden)
        )
    return (
        linear("0", hidden, in_features)
        | batch_norm("1", hidden)
        | linear("3", hidden, hidden)
        | batch_norm("4", hidden)
        | linear("6", out, hidden)
        | batch_norm("7", out, affine=False)
    )


def predictor(vit, features=512, hidden=2048):
    if vit:
        norm = {"0.weight": (features,), "0.bias": (features,)}
        return norm | linear("1", hidden, features) | linear("3", features, hidden)
    return linear("0", hidden, features) | batch_norm("1", hidden) | linear("3", features, hidden)


# The architectures by our names: shapes of the encoders at 224 px (32 px for the 3x3 stems).
ENCODERS = {
    "resnet18_cifar": lambda: resnet(False, (2, 2, 2, 2), 3),
    "resnet18_small": lambda: resnet(False, (2, 2, 2, 2), 3),
    "resnet18": lambda: resnet(False, (2, 2, 2, 2), 7),
    "resnet34": lambda: resnet(False, (3, 4, 6, 3), 7),
    "resnet50": lambda: resnet(True, (3, 4, 6, 3), 7),
    "resnet101": lambda: resnet(True, (3, 4, 23, 3), 7),
    "vit_ti16": lambda: vit(192, 12, 16, 14),
    "vit_s16": lambda: vit(384, 12, 16, 14),
    "vit_b16": lambda: vit(768, 12, 16, 14),
    "vit_l16": lambda: vit(1024, 24, 16, 14),
    "vitc_s16": lambda: vit(384, 11, 16, 14, conv_stem=True),
    "vitc_b16": lambda: vit(768, 11, 16, 14, conv_stem=True),
    "vit_s16_mocov3": lambda: vit(384, 12, 16, 14),
    "vit_h14": lambda: vit(1280, 32, 14, 16),
    "deit3_s16": lambda: vit(384, 12, 16, 14, scaled=True),
    "deit3_b16": lambda: vit(768, 12, 16, 14, scaled=True),
    "deit3_l16": lambda: vit(1024, 24, 16, 14, scaled=True),
}
for _registers, _ending in ((0, ""), (4, "_reg4")):
    _scaled = {"scaled": True, "registers": _registers}
    ENCODERS |= {
        f"dinov2_s14{_ending}": lambda s=_scaled: vit(384, 12, 14, 16, **s),
        f"dinov2_b14{_ending}": lambda s=_scaled: vit(768, 12, 14, 16, **s),
        f"dinov2_l14{_ending}": lambda s=_scaled: vit(1024, 24, 14, 16, **s),
        f"dinov2_g14{_ending}": lambda s=_scaled: vit(1536, 40, 14, 16, gated=4096, **s),
    }
_turned = {"scaled": True, "registers": 4}
ENCODERS |= {
    "dinov3_s16": lambda: vit(384, 12, 16, 0, **_turned),
    "dinov3_s16plus": lambda: vit(384, 12, 16, 0, gated=1536, **_turned),
    "dinov3_b16": lambda: vit(768, 12, 16, 0, **_turned),
    "dinov3_l16": lambda: vit(1024, 24, 16, 0, **_turned),
    "dinov3_h16plus": lambda: vit(1280, 32, 16, 0, gated=5120, **_turned),
}


def noise(shape, seed):
    """Values in (-1, 1) by a formula, without visible structure, in float64."""
    index = np.arange(math.prod(shape), dtype=np.float64)
    wave = np.sin(12.9898 * index + 78.233 * seed + 0.5) * 43758.5453
    return (2 * (wave - np.floor(wave)) - 1).reshape(shape)


def formula(shapes, seed=0):
    """A tensor for every name, by formula, such that activations neither die nor explode."""
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items(), start=1000 * seed):
        value = noise(shape, number)
        leaf = name.rsplit(".", 1)[-1]
        if len(shape) in (2, 4):
            value *= math.sqrt(6 / math.prod(shape[1:]))
        elif leaf == "running_var":
            value = 1 + 0.5 * value
        elif leaf == "weight":
            value = 1 + 0.3 * value
        else:
            value *= 0.3
        tensors[name] = value
    return tensors


def prefixed(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
