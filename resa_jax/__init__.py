"""ReSA (Representation Self-Assignment) self-supervised pre-training in JAX and Flax."""

import importlib


__version__ = "0.1.0"

_HOMES = {
    "Encoder": "encoder",
    "UserError": "errors",
    "load_encoder": "encoder",
    "resa_loss": "methods.resa",
    "sinkhorn_knopp": "methods.resa",
    "train": "training.loop",
    "warmup_cosine": "training.schedule",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Loaded on first use, so that the commands can refuse a bad configuration before JAX starts.
    if name in _HOMES:
        return getattr(importlib.import_module(f"resa_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'resa_jax' has no attribute {name!r}")
