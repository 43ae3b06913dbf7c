"""ReSA stated in PyTorch for the tests: method, optimiser and schedules, from the paper and facts.

Nothing of resa_jax is imported here.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Network(nn.Module):
    """Encoder, projector and perhaps predictor: images to encodings and embeddings."""

    def __init__(self, encoder, projector, predictor=None):
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, images):
        h = self.encoder(images)
        z = self.projector(h)
        return h, z if self.predictor is None else self.predictor(z)


def assign(scores, epsilon=0.05):
    q = torch.exp(scores / epsilon).t()
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q / q.sum(0, keepdim=True)).t()


def loss_of(online, momentum, views, temperature=0.4):
    """The loss of one batch; both networks in train mode, one view at a time."""
    outputs = [online(view) for view in views]
    with torch.no_grad():
        targets = [momentum(view) for view in views[:2]]
        h = F.normalize(outputs[0][0], dim=1)
        h_m = F.normalize(targets[0][0], dim=1)
        assignment = assign(h @ h_m.t())
    terms = []
    for q, (_, z) in enumerate(outputs):
        for v, (_, target) in enumerate(targets):
            if q != v:
                logits = F.normalize(z, dim=1) @ F.normalize(target, dim=1).t() / temperature
                terms.append(-(assignment * F.log_softmax(logits, dim=1)).sum(1).mean())
    return sum(terms) / len(terms)


def cosine(start, end, step, steps):
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def train(online, momentum, batches, *, lr, warmup, weight_decay, ema, optimizer):
    """Trains over the batches (each a list of views, [n, 3, h, w]) and returns the losses.

    The learning rate warms up from 0 over `warmup` steps and falls by a cosine towards a tenth; the
    EMA coefficient rises from `ema` to 1.
    """
    online.train(), momentum.train()
    parameters = [p for p in online.parameters() if p.requires_grad]
    if optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    pairs = [
        *zip(momentum.encoder.parameters(), online.encoder.parameters(), strict=True),
        *zip(momentum.projector.parameters(), online.projector.parameters(), strict=True),
    ]
    losses, steps = [], len(batches)
    for step, views in enumerate(batches):
        if step < warmup:
            rate = lr * step / max(warmup - 1, 1)
        else:
            rate = cosine(lr, 0.1 * lr, step - warmup, steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        coefficient = cosine(ema, 1.0, step, steps)
        with torch.no_grad():
            for old, new in pairs:
                old.mul_(coefficient).add_(new, alpha=1 - coefficient)
        loss = loss_of(online, momentum, views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
