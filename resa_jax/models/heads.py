"""Heads: ReSA's projector and predictor, with BatchNorm behind ConvNets and without behind ViTs.

ReSA's have its authors' settings (winci-ai/resa, src/model.py at commit 6b774ef), which differ from
the paper's text in a last BatchNorm without affine parameters on the ConvNets' projector and a
first LayerNorm on the ViTs' predictor.
"""

from flax import nnx
from jaxtyping import Array, Float

from resa_jax.models.layers import BatchNorm, gelu, torch_linear, xavier_linear


class ConvNetProjector(nnx.Module):
    """Linear, BN, ReLU, twice; Linear; BN without affine parameters."""

    layer_names = ("p0", "p1", "embedding")

    def __init__(self, in_features: int, hidden: int, out: int, *, dtype=None, rngs: nnx.Rngs):
        self.linear1 = torch_linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(hidden, dtype=dtype)
        self.linear2 = torch_linear(hidden, hidden, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(hidden, dtype=dtype)
        self.linear3 = torch_linear(hidden, out, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out, affine=False, dtype=dtype)

    def layers(self, x: Float[Array, "n d"], *, train: bool) -> dict[str, Float[Array, "n _"]]:
        """The outputs of both hidden linear layers, "p0" and "p1", and the "embedding"."""
        p0 = self.linear1(x)
        p1 = self.linear2(nnx.relu(self.bn1(p0, train=train)))
        z = self.linear3(nnx.relu(self.bn2(p1, train=train)))
        return {"p0": p0, "p1": p1, "embedding": self.bn3(z, train=train)}

    def __call__(self, x: Float[Array, "n d"], *, train: bool) -> Float[Array, "n e"]:
        return self.layers(x, train=train)["embedding"]


class ViTProjector(nnx.Module):
    """Linear, GELU, twice; Linear."""

    layer_names = ("p0", "p1", "embedding")

    def __init__(self, in_features: int, hidden: int, out: int, *, dtype=None, rngs: nnx.Rngs):
        self.linear1 = xavier_linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = xavier_linear(hidden, hidden, dtype=dtype, rngs=rngs)
        self.linear3 = xavier_linear(hidden, out, dtype=dtype, rngs=rngs)

    def layers(self, x: Float[Array, "n d"], *, train: bool) -> dict[str, Float[Array, "n _"]]:
        """The outputs of both hidden linear layers, "p0" and "p1", and the "embedding"."""
        p0 = self.linear1(x)
        p1 = self.linear2(gelu(p0))
        return {"p0": p0, "p1": p1, "embedding": self.linear3(gelu(p1))}

    def __call__(self, x: Float[Array, "n d"], *, train: bool) -> Float[Array, "n e"]:
        return self.layers(x, train=train)["embedding"]


class MLPHead(nnx.Module):
    """Linear and ReLU, with BatchNorm between where asked for, once; Linear. Of many methods."""

    layer_names = ("p0", "embedding")

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out: int,
        *,
        batch_norm: bool,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.linear1 = torch_linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(hidden, dtype=dtype) if batch_norm else None
        self.linear2 = torch_linear(hidden, out, dtype=dtype, rngs=rngs)

    def layers(self, x: Float[Array, "n d"], *, train: bool) -> dict[str, Float[Array, "n _"]]:
        """The output of the hidden linear layer, "p0", and the "embedding"."""
        p0 = self.linear1(x)
        hidden = p0 if self.bn1 is None else self.bn1(p0, train=train)
        return {"p0": p0, "embedding": self.linear2(nnx.relu(hidden))}

    def __call__(self, x: Float[Array, "n d"], *, train: bool) -> Float[Array, "n e"]:
        return self.layers(x, train=train)["embedding"]


class ConvNetPredictor(nnx.Module):
    """Linear, BN, ReLU, Linear."""

    def __init__(self, features: int, hidden: int, *, dtype=None, rngs: nnx.Rngs):
        self.linear1 = torch_linear(features, hidden, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(hidden, dtype=dtype)
        self.linear2 = torch_linear(hidden, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n e"], *, train: bool) -> Float[Array, "n e"]:
        return self.linear2(nnx.relu(self.bn1(self.linear1(x), train=train)))


class ViTPredictor(nnx.Module):
    """LayerNorm, Linear, GELU, Linear."""

    def __init__(self, features: int, hidden: int, *, dtype=None, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.linear1 = xavier_linear(features, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = xavier_linear(hidden, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n e"], *, train: bool) -> Float[Array, "n e"]:
        return self.linear2(gelu(self.linear1(self.norm(x))))


# Projector and predictor behind each family of encoders.
HEADS = {"convnet": (ConvNetProjector, ConvNetPredictor), "vit": (ViTProjector, ViTPredictor)}
