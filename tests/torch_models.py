"""The encoders and heads stated again in PyTorch, from the papers and the authors' settings.

Independent of the package: nothing of resa_jax is imported here. Tensor names are torchvision's
(ResNets) and timm's (ViTs), so that `load_state_dict` takes the tensors of `torch_layouts`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A basic or a bottleneck block; the stride is in (the first) 3x3 convolution."""

    def __init__(self, channels, inner, stride, bottleneck):
        super().__init__()
        outer = 4 * inner if bottleneck else inner
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = [channels, *[inner] * (len(kernels) - 1), outer]
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            conv = nn.Conv2d(
                widths[i],
                widths[i + 1],
                kernel,
                stride=stride if i == strided else 1,
                padding=kernel // 2,
                bias=False,
            )
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.count = len(kernels)
        self.downsample = None
        if stride != 1 or channels != outer:
            conv = nn.Conv2d(channels, outer, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """stem: "imagenet", or 3x3 "cifar" (padded once more, as the authors' is) or "small"."""

    def __init__(self, bottleneck, stages, stem, width=64):
        super().__init__()
        self.stem = stem
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(stages):
            layers = []
            for index in range(blocks):
                stride = 2 if stage and index == 0 else 1
                layers.append(Residual(channels, width * 2**stage, stride, bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def maps(self, x):
        if self.stem == "cifar":
            x = F.pad(x, (1, 1, 1, 1))
        x = F.relu(self.bn1(self.conv1(x)))
        maps = [x]
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            maps.append(x)
        return maps

    def forward(self, x):
        return self.maps(x)[-1].mean((2, 3))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, t, d = x.shape
        query, key, value = self.qkv(x).split(d, dim=2)

        def per_head(y):
            return y.view(n, t, self.heads, d // self.heads).transpose(1, 2)

        query, key, value = per_head(query), per_head(key), per_head(value)
        scores = query @ key.transpose(2, 3) / math.sqrt(d // self.heads)
        out = torch.softmax(scores, dim=3) @ value
        return self.proj(out.transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width, depth, heads, patch, grid, conv_stem=False):
        super().__init__()
        self.patch, self.grid = patch, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + 1, width), requires_grad=False)
        if conv_stem:
            layers, channels = [], 3
            features = width // (patch // 2)
            while features <= width:
                layers += [
                    nn.Conv2d(channels, features, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(features),
                    nn.ReLU(),
                ]
                channels, features = features, 2 * features
            proj = nn.Sequential(*layers, nn.Conv2d(channels, width, 1))
        else:
            proj = nn.Conv2d(3, width, patch, stride=patch)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows, columns):
        if rows == columns == self.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        table = F.interpolate(
            table,
            scale_factor=((rows + 0.1) / self.grid, (columns + 0.1) / self.grid),
            mode="bicubic",
        )
        assert table.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def last_cls(self, x, blocks):
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(rows, columns)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(self.norm(x)[:, 0])
        return torch.cat(outputs[-blocks:], dim=1)

    def forward(self, x):
        return self.last_cls(x, 1)


def projector(vit, in_features, hidden=2048, out=512):
    if vit:
        return nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, out),
        )
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
        nn.BatchNorm1d(out, affine=False),
    )


def predictor(vit, features=512, hidden=2048):
    if vit:
        return nn.Sequential(
            nn.LayerNorm(features, eps=1e-6),
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Linear(hidden, features),
        )
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, features),
    )


ENCODERS = {
    "resnet18_cifar": lambda: ResNet(False, (2, 2, 2, 2), "cifar"),
    "resnet18_small": lambda: ResNet(False, (2, 2, 2, 2), "small"),
    "resnet18": lambda: ResNet(False, (2, 2, 2, 2), "imagenet"),
    "resnet34": lambda: ResNet(False, (3, 4, 6, 3), "imagenet"),
    "resnet50": lambda: ResNet(True, (3, 4, 6, 3), "imagenet"),
    "resnet101": lambda: ResNet(True, (3, 4, 23, 3), "imagenet"),
    "vit_ti16": lambda: ViT(192, 12, 3, 16, 14),
    "vit_s16": lambda: ViT(384, 12, 6, 16, 14),
    "vit_b16": lambda: ViT(768, 12, 12, 16, 14),
    "vit_l16": lambda: ViT(1024, 24, 16, 16, 14),
    "vitc_s16": lambda: ViT(384, 11, 6, 16, 14, conv_stem=True),
    "vitc_b16": lambda: ViT(768, 11, 12, 16, 14, conv_stem=True),
    "vit_s16_mocov3": lambda: ViT(384, 12, 12, 16, 14),
}


def load(module, tensors):
    """The module in float64 with the given NumPy tensors, all of them and no others."""
    module = module.double()
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    for name in module.state_dict():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
    module.load_state_dict(state, strict=True)
    return module
