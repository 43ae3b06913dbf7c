"""ReSA (Representation Self-Assignment) self-supervised pre-training in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from resa_jax import losses
    from resa_jax.apply import encode, score
    from resa_jax.encoder import Encoder, load_encoder
    from resa_jax.errors import UserError
    from resa_jax.methods.resa_loss import resa_loss, sinkhorn_knopp
    from resa_jax.recipes import get_config
    from resa_jax.training.lars import lars
    from resa_jax.training.loop import train
    from resa_jax.training.schedule import warmup_cosine

__version__ = "0.2.0"

__all__ = [
    "Encoder",
    "UserError",
    "encode",
    "get_config",
    "lars",
    "load_encoder",
    "losses",
    "resa_loss",
    "score",
    "sinkhorn_knopp",
    "train",
    "warmup_cosine",
]

_HOMES = {
    "Encoder": "encoder",
    "UserError": "errors",
    "encode": "apply",
    "get_config": "recipes",
    "lars": "training.lars",
    "load_encoder": "encoder",
    "resa_loss": "methods.resa_loss",
    "score": "apply",
    "sinkhorn_knopp": "methods.resa_loss",
    "train": "training.loop",
    "warmup_cosine": "training.schedule",
}


def __getattr__(name: str):
    # Loaded on first use, so that the commands can refuse a bad configuration before JAX starts.
    if name == "losses":
        return importlib.import_module("resa_jax.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(f"resa_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'resa_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
