"""Vision transformers with MoCo v3's initialisation, fixed sin-cos positions, and timm's names.

Settings: winci-ai/resa, src/vision_transformer.py at commit 6b774ef; Chen et al. (2021), MoCo v3.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from resa_jax.errors import UserError
from resa_jax.models.layers import PRODUCTS, Frozen, call_block, gelu, uniform, xavier_linear
from resa_jax.models.stems import ConvStem, PatchEmbed


class ViTSize(NamedTuple):
    """A ViT's shape, and how the linear evaluation reads it.

    Attributes:
      width: of the embedding; depth: blocks; patch_size: side in pixels.
      rows_first: MoCo v3's position table; else the authors' (and MAE's).
      linear_rate, linear_blocks: see `ViT.linear_settings`.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    conv_stem: bool = False
    rows_first: bool = False
    linear_rate: float = 0.03
    linear_blocks: int = 4


_LARGE: dict[str, Any] = {"linear_rate": 0.02, "linear_blocks": 1}


VITS = {
    "vit_ti16": ViTSize(192, 12, 3),
    "vit_s16": ViTSize(384, 12, 6),
    "vit_b16": ViTSize(768, 12, 12, **_LARGE),
    "vit_l16": ViTSize(1024, 24, 16, **_LARGE),
    # A convolutional stem stands for one block.
    "vitc_s16": ViTSize(384, 11, 6, conv_stem=True),
    "vitc_b16": ViTSize(768, 11, 12, conv_stem=True, **_LARGE),
    "vit_s16_mocov3": ViTSize(384, 12, 12, rows_first=True),
}


def sincos_table(dim: int, grid: int, *, rows_first: bool) -> np.ndarray:
    """The fixed position table [1 + grid * grid, dim] in float64; the first row, [CLS]'s, is zero.

    Each half of the channels is (sin, cos) of one coordinate times 10000^(-4k/dim), k < dim / 4.
    The first half encodes the column (MAE's code and the authors'), or the row if rows_first
    (MoCo v3's). Patches run row by row.
    """
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    angles = np.arange(grid)[:, None] * frequencies
    code = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [grid, dim / 2]
    row = np.broadcast_to(code[:, None], (grid, grid, dim // 2))
    column = np.broadcast_to(code[None, :], (grid, grid, dim // 2))
    halves = (row, column) if rows_first else (column, row)
    patches = np.concatenate(halves, axis=2).reshape(grid * grid, dim)
    return np.concatenate([np.zeros((1, dim)), patches])


def bicubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """PyTorch's bicubic interpolation by the factor (n_out + 0.1) / n_in, as a float64 matrix.

    `torch.nn.functional.interpolate(scale_factor=..., mode="bicubic")`: Keys' kernel with a =
    -0.75, no antialiasing, half-pixel centres, borders repeated; the factor as given sets the
    coordinates, not the ratio of the sizes. The 0.1 guards PyTorch's output size against rounding
    (DINO; the authors' interpolate_pos_encoding). The matrix is [n_out, n_in].
    """
    a = -0.75
    position = (np.arange(n_out) + 0.5) * n_in / (n_out + 0.1) - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((n_out, n_in))
    for tap in range(4):
        distance = np.abs(position - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(n_out), np.clip(first + tap, 0, n_in - 1)), weight)
    return matrix


def resize_positions(
    table: Float[Array, "1 tokens d"], rows: int, columns: int
) -> Float[Array, "1 tokens2 d"]:
    """A square grid's position table, made one of rows x columns patches; [CLS]'s row stays."""
    grid = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (grid, grid):
        return table
    patches = table[0, 1:].reshape(grid, grid, -1)
    patches = jnp.einsum(
        "ai,bj,ijd->abd",
        jnp.asarray(bicubic_matrix(grid, rows), table.dtype),
        jnp.asarray(bicubic_matrix(grid, columns), table.dtype),
        patches,
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.concatenate([table[0, :1], patches.reshape(rows * columns, -1)])[None]


class Attention(nnx.Module):
    """Multi-head self-attention with one fused map to queries, keys and values, as in timm."""

    def __init__(self, width: int, heads: int, *, dtype, rngs):
        self.heads = heads
        # The three maps are initialised as if they were separate: Xavier over width to width.
        self.qkv = nnx.Linear(
            width,
            3 * width,
            kernel_init=uniform(math.sqrt(6 / (2 * width))),
            dtype=dtype,
            precision=PRODUCTS,
            rngs=rngs,
        )
        self.proj = xavier_linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        return self.proj(_attend(qkv).reshape(n, tokens, width))


@jax.checkpoint
def _attend(qkv: Float[Array, "n t 3 h d"]) -> Float[Array, "n t h d"]:
    """Softmax attention, one head after the other: fewer scores at a time stay nearer.

    The backward pass makes the scores again, which cost little, in the place of keeping them. They
    are written out, since jax.nn.dot_product_attention takes its softmax in float32 even of
    float64; here it is float32 at least.
    """
    outputs = []
    for head in range(qkv.shape[3]):
        query, key, value = (qkv[:, :, part, head] for part in range(3))
        scores = jnp.einsum(
            "nqd,nkd->nqk",
            query * qkv.shape[4] ** -0.5,
            key,
            precision=PRODUCTS,
            preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
        )
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        outputs.append(jnp.einsum("nqk,nkd->nqd", weights, value, precision=PRODUCTS))
    return jnp.stack(outputs, axis=2)


class MLP(nnx.Module):
    """Linear to four times the width, exact GELU, Linear back."""

    def __init__(self, width: int, *, dtype, rngs):
        self.fc1 = xavier_linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.fc2 = xavier_linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        return self.fc2(gelu(self.fc1(x)))


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, dtype, rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"], *, train: bool) -> Float[Array, "n t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """A vision transformer without a head: images to the [CLS] token after the last LayerNorm.

    The position table belongs to image_size; images of another size get it by bicubic
    interpolation. Frozen are the table and, without a convolutional stem, the patch embedding.
    """

    family = "vit"

    def __init__(
        self, size: ViTSize, *, image_size: int, dtype=None, remat: bool = False, rngs: nnx.Rngs
    ):
        width = size.width
        self.patch_size = size.patch_size
        self.depth = size.depth
        self.num_features = width
        self.remat = remat
        self.dtype = dtype
        self.linear_rate = size.linear_rate
        self.linear_blocks = min(size.linear_blocks, size.depth)
        stem = ConvStem if size.conv_stem else PatchEmbed
        self.patch_embed = stem(width, size.patch_size, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, width)))
        table = sincos_table(width, image_size // size.patch_size, rows_first=size.rows_first)
        self.pos_embed = Frozen(jnp.asarray(table[None], jnp.float32))
        for index in range(size.depth):
            setattr(self, f"blocks_{index}", Block(width, size.heads, dtype=dtype, rngs=rngs))
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def tokens(self, x: Float[Array, "n h w 3"], *, train: bool) -> Float[Array, "n t d"]:
        """[CLS] and the patches, positions added: the first block's input."""
        height, width = x.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"Images of {height} x {width} do not divide into patches of {self.patch_size} px: "
                f"use a multiple of {self.patch_size}."
            )
        x = self.patch_embed(x, train=train)
        rows, columns = x.shape[1:3]
        cls_token, positions = self.cls_token[...], self.pos_embed[...]
        positions = resize_positions(positions, rows, columns)
        if self.dtype is not None:
            cls_token, positions = cls_token.astype(self.dtype), positions.astype(self.dtype)
        x = x.reshape(x.shape[0], rows * columns, -1)
        cls_tokens = jnp.broadcast_to(cls_token, (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        return jnp.concatenate([cls_tokens, x], axis=1) + positions

    def last_cls(
        self, x: Float[Array, "n h w 3"], blocks: int, *, train: bool = False
    ) -> Float[Array, "n d"]:
        """The [CLS] tokens after the last blocks, each through the last LayerNorm, side by side.

        Earliest block first, so blocks = 1 is the encoding itself (DINO's and the authors' linear
        evaluation of ViT-S takes 4). Raises UserError if the network has fewer blocks.
        """
        if not 1 <= blocks <= self.depth:
            raise UserError(
                f"The last {blocks} blocks were asked of an encoder with {self.depth}: "
                f"use 1 to {self.depth}."
            )
        outputs = self._outputs(x, blocks, train=train)
        return jnp.concatenate([self.norm(y[:, 0]) for y in outputs], axis=1)

    def linear_features(self, x: Float[Array, "n h w 3"], blocks: int) -> Float[Array, "n d"]:
        """What a linear evaluation reads, in evaluation mode.

        Of several last blocks their [CLS] tokens, as `last_cls`; of one, [CLS] and the mean of the
        patches. Source: resa@6b774ef, eval_linear.py.
        """
        if blocks != 1:
            return self.last_cls(x, blocks)
        (y,) = self._outputs(x, 1, train=False)
        y = self.norm(y)
        return jnp.concatenate([y[:, 0], y[:, 1:].mean(axis=1)], axis=1)

    def linear_settings(self, batch_size: int | None) -> tuple[float, int]:
        """Learning rate per 256 images and blocks to read of the linear evaluation (Table 9).

        Args:
          batch_size: of pre-training; here it does not matter.
        """
        return self.linear_rate, self.linear_blocks

    def _outputs(self, x: Float[Array, "n h w 3"], last: int, *, train: bool) -> list[Array]:
        """The tokens after each of the last blocks, before the last LayerNorm."""
        x, outputs = self.tokens(x, train=train), []
        for index in range(self.depth):
            x = call_block(getattr(self, f"blocks_{index}"), x, train=train, remat=self.remat)
            outputs.append(x)
        return outputs[-last:]

    def __call__(self, x: Float[Array, "n h w 3"], *, train: bool) -> Float[Array, "n d"]:
        return self.last_cls(x, 1, train=train)
