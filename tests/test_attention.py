"""Attention's two forms against NumPy and each other, and which of them a program has."""

import shutil
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax.models import attention
from resa_jax.models.positions import rotations


HEADS, WIDTH = 3, 48


def _qkv(tokens, dtype):
    return jax.random.normal(jax.random.key(tokens), (4, tokens, 3 * WIDTH)).astype(dtype)


def _by_numpy(qkv):
    query, key, value = np.moveaxis(qkv.reshape(*qkv.shape[:2], 3, HEADS, -1), 2, 0)
    scores = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(WIDTH // HEADS)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhqk,nkhd->nqhd", weights, value).reshape(*qkv.shape[:2], WIDTH)


def test_the_written_form_is_attention():
    with jax.enable_x64(True):
        qkv = _qkv(7, jnp.float64)
        ours = attention.attend(qkv, None, HEADS)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, _by_numpy(np.asarray(qkv)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tokens", [17, 16])  # an odd number gets one more
def test_the_library_s_form_is_the_written_one(tokens, turned):
    qkv = _qkv(tokens, jnp.bfloat16)
    turns = rotations(4, 4, WIDTH // HEADS, tokens - 16)
    turns = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), turns) if turned else None
    upstream = jax.random.normal(jax.random.key(0), (4, tokens, WIDTH))

    def value_and_gradient(form):
        loss = lambda qkv: jnp.sum(form(qkv, turns, HEADS).astype(jnp.float32) * upstream)
        return form(qkv, turns, HEADS), jax.grad(loss)(qkv)

    theirs = value_and_gradient(partial(attention.all_heads_by_cudnn, implementation="xla"))
    ours = value_and_gradient(attention.one_head_at_a_time)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype == jnp.bfloat16
        error = jnp.abs(one.astype(float) - other.astype(float)).max()
        assert error < 0.01 * jnp.abs(one).max(), error


def test_a_program_for_nvidia_has_the_library_s_form_and_others_the_written_one(monkeypatch):
    monkeypatch.setattr(attention, "_cudnn_is_here", lambda: True)
    form = partial(attention.all_heads_by_cudnn, implementation="xla")
    monkeypatch.setattr(attention, "all_heads_by_cudnn", form)

    def products(platform, dtype):
        step = jax.jit(jax.value_and_grad(lambda qkv: attention.attend(qkv, None, HEADS).sum()))
        program = step.trace(_qkv(6, dtype)).lower(lowering_platforms=(platform,))
        return program.as_text().count("stablehlo.dot_general")

    # Two forward, four backward; written out, the scores again, and all of it for each head.
    assert products("cuda", jnp.bfloat16) == 6
    for platform in ("cpu", "tpu", "rocm"):
        assert products(platform, jnp.bfloat16) == 7 * HEADS
    assert products("cuda", jnp.float32) == 7 * HEADS


_ON_A_GPU = """
import jax, jax.numpy as jnp
from resa_jax.models import attention
assert attention._cudnn_is_here(), "cuDNN was not found"
for tokens in (197, 37, 50):
    qkv = jax.random.normal(jax.random.key(tokens), (8, tokens, 3 * 384)).astype(jnp.bfloat16)
    results = []
    for form in (attention.attend, attention.one_head_at_a_time):
        loss = lambda qkv: jnp.sum(jnp.sin(form(qkv, None, 6).astype(jnp.float32)))
        results.append((form(qkv, None, 6), jax.jit(jax.grad(loss))(qkv)))
    for one, other in zip(*results):
        error = jnp.abs(one.astype(float) - other.astype(float)).max()
        assert error < 0.02 * jnp.abs(other.astype(float)).max(), (tokens, error)
"""


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU")
def test_cudnn_s_numbers_on_a_gpu(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("XLA_FLAGS", "")
    subprocess.run([sys.executable, "-c", _ON_A_GPU], check=True)
