"""Layers that Flax lacks in PyTorch's form: BatchNorm, initialisers, frozen tensors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from resa_jax.errors import UserError
from resa_jax.sharding import count_devices, mean_over_devices


# PyTorch's default for convolutions and linear maps: uniform in +-1/sqrt(fan_in).
torch_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. (2015) over the outputs, as torchvision initialises the convolutions of a ResNet.
kaiming_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = initializers.variance_scaling(1.0, "fan_avg", "uniform")

# What float32 networks compute in, on every platform, as the authors' PyTorch does by default:
# products in float32, convolutions in TensorFloat-32 (on a TPU in three bfloat16 passes). The
# default of a TPU would be bfloat16 for both. bfloat16 operands are multiplied as they are.
PRODUCTS = jax.lax.Precision.HIGHEST
CONVOLUTIONS = jax.lax.Precision.HIGH


class Frozen(nnx.Param):
    """A tensor of the model that no optimiser touches: neither updated nor decayed."""


def uniform(bound: float) -> initializers.Initializer:
    """An initialiser, uniform in [-bound, bound)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(
    in_features: int, out_features: int, *, bias: bool = True, dtype=None, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear map that starts as `torch.nn.Linear`: all uniform in +-1/sqrt(in_features)."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias,
        kernel_init=torch_uniform,
        bias_init=uniform(1 / math.sqrt(in_features)),
        dtype=dtype,
        precision=PRODUCTS,
        rngs=rngs,
    )


def xavier_linear(in_features: int, out_features: int, *, dtype=None, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map with a Xavier-uniform weight and a bias of zero, as MoCo v3's ViTs use."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=xavier_uniform,
        dtype=dtype,
        precision=PRODUCTS,
        rngs=rngs,
    )


def normal_linear(
    in_features: int, out_features: int, *, bias: bool = True, dtype=None, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear map as DINO's head has it: a weight from N(0, 0.02), a bias of zero."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias,
        kernel_init=initializers.normal(0.02),
        dtype=dtype,
        precision=PRODUCTS,
        rngs=rngs,
    )


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    In train mode it normalises by the batch's own mean and biased variance and moves the running
    mean and the running *unbiased* variance a tenth of the way towards the batch's
    (`torch.nn.BatchNorm2d`, momentum 0.1). The batch is the global one, whatever the number of
    devices. Statistics are float32 at least.
    """

    momentum = 0.9  # of the running statistics; PyTorch calls 1 - 0.9 the momentum
    epsilon = 1e-5

    def __init__(self, features: int, *, affine: bool = True, zero_scale: bool = False, dtype=None):
        self.features = features
        self.dtype = dtype
        scale = jnp.zeros if zero_scale else jnp.ones
        self.scale = nnx.Param(scale(features)) if affine else None
        self.bias = nnx.Param(jnp.zeros(features)) if affine else None
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Float[Array, "*n c"], *, train: bool) -> Float[Array, "*n c"]:
        """Returns x normalised, in `dtype` (or the promoted type of x and the parameters).

        Raises UserError in train mode for a batch with a single value per channel: it has no
        variance.
        """
        mean, var = self.mean[...], self.var[...]
        wide = jnp.promote_types(x.dtype, mean.dtype)
        out_dtype = wide if self.dtype is None else self.dtype
        x = x.astype(wide)
        if train:
            mean, var = self._batch_moments(x)
        inverse = jax.lax.rsqrt(var + self.epsilon)
        if self.scale is None or self.bias is None:
            return ((x - mean) * inverse).astype(out_dtype)
        return ((x - mean) * (inverse * self.scale[...]) + self.bias[...]).astype(out_dtype)

    def _batch_moments(self, x: Array) -> tuple[Array, Array]:
        """The batch's mean and biased variance; moves the running statistics."""
        count = x.size // self.features * count_devices()
        if count < 2:
            raise UserError(
                "BatchNorm needs at least 2 values per channel in train mode, and this batch holds "
                f"{count}: use a larger batch."
            )
        axes = tuple(range(x.ndim - 1))
        # Both moments from one read of x. Their difference would cancel where the mean is large
        # against the deviation, so x is first shifted by the running mean, a constant to gradients.
        shift = jax.lax.stop_gradient(self.mean[...]).astype(x.dtype)
        shifted = x - shift
        mean, square = mean_over_devices((shifted.mean(axes), (shifted * shifted).mean(axes)))
        var = jnp.maximum(square - mean * mean, 0)
        mean = mean + shift
        keep = self.momentum
        unbiased = jax.lax.stop_gradient(var) * (count / (count - 1))
        # Raw, since `x[...] = y` asks y for its sharding, for which JAX walks through all of the
        # program traced so far.
        for running, new in ((self.mean, jax.lax.stop_gradient(mean)), (self.var, unbiased)):
            running.set_raw_value(keep * running[...] + (1 - keep) * new)
        return mean, var


# Attention makes its scores anew by itself, and would do so twice within a block that is made anew.
ATTENDED = "attended"
_KEPT = jax.checkpoint_policies.save_only_these_names(ATTENDED)


def call_block(block: nnx.Module, x: Array, *others, train: bool, remat: bool) -> Array:
    """Calls block(x, *others, train=train); with remat its activations, but for what attention
    gave, are computed anew in the backward pass.

    The block is split into plain arrays first, and its batch statistics leave as an ordinary
    output. So without remat JAX sees one pure function in all blocks of one structure, over all
    views and both networks, and traces it once.
    """
    graphdef, *states = nnx.split(block, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, states)
    if remat:
        # Not traced once: a TPU's compiler makes a slower step of it.
        params, x = _together(params, x)
        call = jax.checkpoint(partial(_call, graphdef, train), policy=_KEPT)
        y, stats = call(params, stats, x, *others)
    else:
        y, stats = _call_traced_once(graphdef, train, params, stats, x, *others)
    if stats:
        nnx.update(block, stats)
    return y


@jax.custom_vjp
def _together(params, x):
    """The two as they are; in the backward pass one's gradient waits for the other's.

    Else compilers put off the parameters' gradients to the step's end, and what they are made of,
    the activations, stays for so long.
    """
    return params, x


_together.defvjp(
    lambda params, x: ((params, x), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


def _call(graphdef, train, params, stats, x, *others):
    block = nnx.merge(graphdef, params, stats)
    y = block(x, *others, train=train)
    return y, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))


_call_traced_once = jax.jit(_call, static_argnums=(0, 1))


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x times the normal distribution function; JAX's default approximates it."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    # As autodiff has it. JAX 0.12's own derivative of erfc cannot be taken under shard_map.
    (x,), (tangent,) = primals, tangents
    below = jax.lax.erfc(-x * x.dtype.type(math.sqrt(0.5))) / 2
    density = jnp.exp(-jnp.square(x) / 2) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return gelu(x), (below + x * density) * tangent
