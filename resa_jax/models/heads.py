"""Heads: ReSA's projector and predictor, with BatchNorm behind ConvNets and without behind ViTs.

ReSA's have its authors' settings (winci-ai/resa, src/model.py at commit 6b774ef), which differ from
the paper's text in a last BatchNorm without affine parameters on the ConvNets' projector and a
first LayerNorm on the ViTs' predictor.
"""

from collections.abc import Callable, Sequence

from flax import nnx
from jaxtyping import Array, Float

from resa_jax.models.layers import BatchNorm, Frozen, gelu, torch_linear, xavier_linear


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


class MLP(nnx.Module):
    """Linear, BatchNorm, ReLU, any number of times; Linear. The heads of most methods.

    Attributes:
      layer_names: "p0", "p1", ..., the outputs of the hidden linear layers, and "embedding".
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_norm: bool = True,
        bias: bool = True,
        last_bias: bool = True,
        last_batch_norm: bool = False,
        linear: Callable[..., nnx.Linear] = torch_linear,
        activation: Callable[[Array], Array] = nnx.relu,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        """
        Args:
          sizes: of the input and of every layer's output.
          batch_norm: behind the hidden layers.
          bias: of the hidden layers; last_bias: of the last one.
          last_batch_norm: a BatchNorm without affine parameters at the end.
          linear: makes a layer, as `torch_linear`.
        """
        last = len(sizes) - 2
        self.activation = activation
        self.layer_names = (*(f"p{n}" for n in range(last)), "embedding")
        self.linears = nnx.List(
            linear(*sizes[n : n + 2], bias=last_bias if n == last else bias, dtype=dtype, rngs=rngs)
            for n in range(last + 1)
        )
        hidden = sizes[1:-1] if batch_norm else ()
        self.norms = nnx.List(BatchNorm(size, dtype=dtype) for size in hidden)
        self.last_norm = (
            BatchNorm(sizes[-1], affine=False, dtype=dtype) if last_batch_norm else None
        )

    def layers(self, x: Float[Array, "n d"], *, train: bool) -> dict[str, Float[Array, "n _"]]:
        """What `layer_names` names."""
        outputs = {}
        for number, (name, linear) in enumerate(zip(self.layer_names, self.linears, strict=True)):
            x = outputs[name] = linear(x)
            if name != "embedding":
                x = self.norms[number](x, train=train) if self.norms else x
                x = self.activation(x)
        if self.last_norm is not None:
            outputs["embedding"] = self.last_norm(x, train=train)
        return outputs

    def __call__(self, x: Float[Array, "n d"], *, train: bool) -> Float[Array, "n e"]:
        return self.layers(x, train=train)["embedding"]


def freeze_last_bias(head: MLP) -> MLP:
    """The same head, whose last bias is never trained."""
    last = head.linears[-1]
    assert last.bias is not None
    last.bias = Frozen(last.bias[...])
    return head


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
