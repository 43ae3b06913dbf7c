"""Convolutions on a CPU's small maps: equal to XLA's, which the other platforms keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax.models.convolution import convolution


SHAPES = [  # side, channels in and out, kernel, stride
    pytest.param(4, 3, 5, 3, 2, id="4to2"),
    pytest.param(2, 3, 4, 3, 1, id="2to2"),
    pytest.param(2, 3, 4, 3, 2, id="2to1"),
    pytest.param(1, 4, 3, 3, 1, id="1to1"),
    pytest.param(7, 3, 4, 7, 4, id="7to2"),
    pytest.param(9, 3, 4, 1, 2, id="shortcut"),
    pytest.param(2, 3, 4, 1, 1, id="1x1"),
    pytest.param(6, 3, 4, 3, 1, id="large"),
]


def both(side, inside, out, size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side, inside)))
    kernel = jnp.asarray(rng.normal(size=(size, size, inside, out)))
    pads = ((size // 2, size // 2),) * 2
    ours = lambda x, k: convolution(x, k, (stride, stride), pads, precision=None)
    names = ("NHWC", "HWIO", "NHWC")
    theirs = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (stride, stride), pads, dimension_numbers=names
    )
    return x, kernel, ours, theirs


@pytest.mark.parametrize(("side", "inside", "out", "size", "stride"), SHAPES)
def test_equal_to_xlas(side, inside, out, size, stride):
    with jax.enable_x64(True):
        x, kernel, *forms = both(side, inside, out, size, stride)
        results = []
        for form in forms:
            y, pull = jax.vjp(jax.jit(form), x, kernel)
            results.append((y, *pull(jnp.cos(y))))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_only_a_cpu_has_products(platform):
    x, kernel, *forms = both(4, 3, 5, 3, 2)
    texts = []
    for form in forms:
        step = jax.jit(jax.grad(lambda x, k, form=form: jnp.sum(form(x, k) ** 2), argnums=(0, 1)))
        lowered = step.trace(x, kernel).lower(lowering_platforms=(platform,))
        texts.append(lowered.as_text())
    ours, theirs = (
        [line for line in text.splitlines() if "= stablehlo.convolution" in line] for text in texts
    )
    if platform == "cpu":
        assert not ours and "dot_general" in texts[0]
    else:
        attributes = lambda line: line.partition("dim_numbers")[2]
        assert sorted(map(attributes, ours)) == sorted(map(attributes, theirs))
        assert "dot_general" not in texts[0]
