"""Softmax attention whose scores are not kept: cuDNN's on NVIDIA, elsewhere one head at a time."""

from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.models.layers import PRODUCTS
from resa_jax.models.positions import rotate


Turns = tuple[Float[Array, "t head"], Float[Array, "t head"]]  # see `positions.rotations`


def attend(qkv: Float[Array, "n t _"], turns: Turns | None, heads: int) -> Float[Array, "n t _"]:
    """Multi-head attention: means of the values, by the softmax of queries with keys over sqrt(d).

    Vaswani et al. (2017), equation 1; float32 at least within the softmax.

    NVIDIA's programs hold cuDNN's kernel where it takes the dtype and the heads' width, and all
    others `one_head_at_a_time`. The two differ by what bfloat16 rounds.

    Args:
      qkv: queries, keys and values side by side, each with its heads one after the other.
      turns: of rotary positions.
    """
    if not _cudnn_takes(qkv.dtype, qkv.shape[-1] // (3 * heads)):
        return one_head_at_a_time(qkv, turns, heads)
    return jax.lax.platform_dependent(
        qkv,
        turns,
        default=lambda qkv, turns: one_head_at_a_time(qkv, turns, heads),
        cuda=lambda qkv, turns: all_heads_by_cudnn(qkv, turns, heads),
    )


@partial(jax.checkpoint, static_argnums=2)
def one_head_at_a_time(
    qkv: Float[Array, "n t _"], turns: Turns | None, heads: int
) -> Float[Array, "n t _"]:
    """`attend`, written out: fewer scores at a time stay nearer.

    The heads are cut from the channels, and never an axis of their own, along which a TPU would lay
    everything out anew.

    The backward pass makes the scores again, which cost little, in the place of keeping them. They
    are written out, since jax.nn.dot_product_attention takes its softmax in float32 even of
    float64; here it is float32 at least.
    """
    outputs = []
    parts = jnp.split(qkv, 3 * heads, axis=-1)  # all queries first, then keys, then values
    for head in range(heads):
        query, key, value = parts[head::heads]
        if turns is not None:
            query, key = rotate(query, *turns), rotate(key, *turns)
        scores = jnp.einsum(
            "nqd,nkd->nqk",
            query * query.shape[-1] ** -0.5,
            key,
            precision=PRODUCTS,
            preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
        )
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        outputs.append(jnp.einsum("nqk,nkd->nqd", weights, value, precision=PRODUCTS))
    return jnp.concatenate(outputs, axis=-1)


def all_heads_by_cudnn(
    qkv: Float[Array, "n t _"],
    turns: Turns | None,
    heads: int,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "n t _"]:
    """`attend` by `jax.nn.dot_product_attention`, in float16 or bfloat16.

    JAX refuses gradients at an odd number of tokens, so that one more is laid beside them, which
    the lengths leave out.

    Args:
      implementation: "xla" for a form that runs without cuDNN.
    """
    n, tokens, _ = qkv.shape
    parts = jnp.split(qkv, 3, axis=-1)
    query, key, value = (part.reshape(n, tokens, heads, -1) for part in parts)
    if turns is not None:
        turned = jax.vmap(rotate, in_axes=(2, None, None), out_axes=2)
        query, key = turned(query, *turns), turned(key, *turns)
    lengths = None
    if tokens % 2:
        one_more = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(part, one_more) for part in (query, key, value))
        lengths = jnp.full(n, tokens, jnp.int32)
    mean = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mean[:, :tokens].reshape(n, tokens, -1)


def _cudnn_takes(dtype: jnp.dtype, head_width: int) -> bool:
    fits = head_width % 8 == 0 and head_width <= 128
    return dtype in (jnp.bfloat16, jnp.float16) and fits and _cudnn_is_here()


@cache
def _cudnn_is_here() -> bool:
    """Whether JAX finds cuDNN, without which its form cannot be traced, and no GPU is too old."""
    qkv = jax.ShapeDtypeStruct((1, 2, 24), jnp.bfloat16)
    try:
        jax.eval_shape(partial(all_heads_by_cudnn, turns=None, heads=1), qkv)
    except RuntimeError:
        return False
    gpus = [device for device in jax.local_devices() if device.platform == "gpu"]
    return all(float(device.compute_capability) >= 8.0 for device in gpus)
