"""The same ReSA step in PyTorch as its users write it: SDPA, channels-last, autocast."""

import copy
import itertools
import time

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention by `scaled_dot_product_attention`."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        shape = n, tokens, 3, self.heads, width // self.heads
        query, key, value = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A ViT whose patch embedding and positions are fixed; gives the [CLS] token."""

    def __init__(self, size, patch, width, depth, heads):
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, stride=patch).requires_grad_(False)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.num_features = nn.LayerNorm(width), width

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x))[:, 0]


class Residual(nn.Module):
    """A basic or bottleneck block."""

    def __init__(self, channels, inner, stride, bottleneck):
        super().__init__()
        out = inner * (4 if bottleneck else 1)
        widths = [(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
        if not bottleneck:
            widths = [(channels, inner, 3, stride), (inner, out, 3, 1)]
        layers = []
        for before, after, kernel, step in widths:
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        return functional.relu(self.branch(x) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A ResNet with ImageNet's stem or CIFAR's; gives the mean of the last map."""

    def __init__(self, stages, bottleneck, stem, width=64):
        super().__init__()
        cifar = stem != "imagenet"
        conv = nn.Conv2d(
            3, width, 3 if cifar else 7, 1 if cifar else 2, 2 if stem == "cifar" else 3
        )
        layers = [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if not cifar:
            layers.append(nn.MaxPool2d(3, 2, 1))
        channels = width
        for stage, blocks in enumerate(stages):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Residual(channels, width * 2**stage, stride, bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
        self.layers, self.num_features = nn.Sequential(*layers), channels

    def forward(self, x):
        return self.layers(x).mean((2, 3))


def _head(sizes):
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers[-2:] = [nn.BatchNorm1d(sizes[-1], affine=False)]
    return nn.Sequential(*layers)


class Step:
    """A train step on views that are on the device; `seconds(n)` times n of them."""

    def __init__(
        self, encoder, hidden, output, *, size, batch, predictor, adam, bfloat16, compiled
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        sizes = encoder.num_features, hidden, hidden, output
        heads = [_head(sizes)] + ([_head((output, hidden, output))] if predictor else [])
        online = nn.ModuleList([encoder, *heads]).to(self.device)
        self.target = copy.deepcopy(online).requires_grad_(False)
        self.online = online.to(memory_format=torch.channels_last)
        self.target = self.target.to(memory_format=torch.channels_last)
        trained = [p for p in online.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if adam else torch.optim.SGD
        options = {"lr": 1e-3} if adam else {"lr": 0.5, "momentum": 0.9}
        self.optimizer = kind(trained, weight_decay=1e-5, **options)
        self.bfloat16 = bfloat16
        views = torch.randn(2, batch, 3, size, size, device=self.device)
        self.views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _outputs(self, network, view, last=None):
        h = network[0](view)
        z = h
        for head in network[1:last]:
            z = head(z)
        return h, functional.normalize(z.float(), dim=1)

    def _loss(self):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = [self._outputs(self.online, view) for view in self.views]
            with torch.no_grad():
                targets = [self._outputs(self.target, view, 2) for view in self.views]
        with torch.no_grad():
            h, h_m = (functional.normalize(x[0][0].float(), dim=1) for x in (outputs, targets))
            q = torch.exp(h @ h_m.t() / 0.05)
            for _ in range(3):
                q = q / q.sum(0, keepdim=True)
                q = q / q.sum(1, keepdim=True)
        logits = (outputs[a][1] @ targets[1 - a][1].t() / 0.4 for a in (0, 1))
        terms = [-(q * functional.log_softmax(x, 1)).sum(1).mean() for x in logits]
        return (terms[0] + terms[1]) / 2

    def __call__(self):
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            ours = [p for p in self.target.parameters() if p.dtype.is_floating_point]
            theirs = list(self.online.parameters())
            torch._foreach_lerp_(ours, theirs, 0.004)
        return loss

    def seconds(self, steps):
        """Of one step, the mean of so many."""
        start = time.perf_counter()
        for _ in range(steps):
            loss = self()
        loss.item()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps
