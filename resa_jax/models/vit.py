"""Vision transformers, by timm's names: MoCo v3's and the authors', and those of public weights.

Settings: winci-ai/resa, src/vision_transformer.py at commit 6b774ef; Chen et al. (2021), MoCo v3;
Touvron et al. (2022), DeiT III; Oquab et al. (2023), DINOv2; Darcet et al. (2023), registers;
Siméoni et al. (2025), DINOv3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resa_jax.errors import UserError
from resa_jax.image_size import ImageSize, height_width
from resa_jax.models.layers import Frozen, call_block
from resa_jax.models.positions import resize_positions, rotations, sincos_table
from resa_jax.models.stems import ConvStem, PatchEmbed
from resa_jax.models.transformer import Block


class ViTSize(NamedTuple):
    """A ViT's shape, and how the linear evaluation reads it.

    Attributes:
      width: of the embedding; depth: blocks; patch_size: side in pixels.
      rows_first: MoCo v3's position table; else the authors' (and MAE's).
      linear_rate, linear_blocks: see `ViT.linear_settings`.
      registers: tokens besides [CLS] and the patches.
      hidden, gated, layer_scale, epsilon: see `Block`.
      rotary: positions by DINOv3's rotations, without a table.
      learned: positions and patch embedding are trained; else both are fixed.
      smooth: see `resize_positions`.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    conv_stem: bool = False
    rows_first: bool = False
    linear_rate: float = 0.03
    linear_blocks: int = 4
    registers: int = 0
    hidden: int | None = None
    gated: bool = False
    layer_scale: float | None = None
    epsilon: float = 1e-6
    rotary: bool = False
    learned: bool = False
    smooth: bool = False


_LARGE: dict[str, Any] = {"linear_rate": 0.02, "linear_blocks": 1}
_DEIT3: dict[str, Any] = {"layer_scale": 1e-4, "learned": True}
_DINOV2: dict[str, Any] = {"layer_scale": 1.0, "learned": True, "patch_size": 14}
_REG4: dict[str, Any] = _DINOV2 | {"registers": 4, "smooth": True}
_DINOV3: dict[str, Any] = {
    "layer_scale": 1e-5,
    "learned": True,
    "registers": 4,
    "rotary": True,
    "epsilon": 1e-5,
}
_GIANT: dict[str, Any] = {"gated": True, "hidden": 4096}


VITS = {
    "vit_ti16": ViTSize(192, 12, 3),
    "vit_s16": ViTSize(384, 12, 6),
    "vit_b16": ViTSize(768, 12, 12, **_LARGE),
    "vit_l16": ViTSize(1024, 24, 16, **_LARGE),
    "vit_h14": ViTSize(1280, 32, 16, patch_size=14, **_LARGE),
    # A convolutional stem stands for one block.
    "vitc_s16": ViTSize(384, 11, 6, conv_stem=True),
    "vitc_b16": ViTSize(768, 11, 12, conv_stem=True, **_LARGE),
    "vit_s16_mocov3": ViTSize(384, 12, 12, rows_first=True),
    "deit3_s16": ViTSize(384, 12, 6, **_DEIT3),
    "deit3_b16": ViTSize(768, 12, 12, **_DEIT3, **_LARGE),
    "deit3_l16": ViTSize(1024, 24, 16, **_DEIT3, **_LARGE),
    "dinov2_s14": ViTSize(384, 12, 6, **_DINOV2),
    "dinov2_b14": ViTSize(768, 12, 12, **_DINOV2, **_LARGE),
    "dinov2_l14": ViTSize(1024, 24, 16, **_DINOV2, **_LARGE),
    "dinov2_g14": ViTSize(1536, 40, 24, **_DINOV2, **_GIANT, **_LARGE),
    "dinov2_s14_reg4": ViTSize(384, 12, 6, **_REG4),
    "dinov2_b14_reg4": ViTSize(768, 12, 12, **_REG4, **_LARGE),
    "dinov2_l14_reg4": ViTSize(1024, 24, 16, **_REG4, **_LARGE),
    "dinov2_g14_reg4": ViTSize(1536, 40, 24, **_REG4, **_GIANT, **_LARGE),
    "dinov3_s16": ViTSize(384, 12, 6, **_DINOV3),
    "dinov3_s16plus": ViTSize(384, 12, 6, **_DINOV3, gated=True, hidden=1536),
    "dinov3_b16": ViTSize(768, 12, 12, **_DINOV3, **_LARGE),
    "dinov3_l16": ViTSize(1024, 24, 16, **_DINOV3, **_LARGE),
    "dinov3_h16plus": ViTSize(1280, 32, 20, **_DINOV3, gated=True, hidden=5120, **_LARGE),
}


class ViT(nnx.Module):
    """A vision transformer without a head: images to the [CLS] token after the last LayerNorm.

    The position table belongs to image_size; images of another size get it by bicubic
    interpolation. Unless `learned`, the table and a linear patch embedding are frozen.
    """

    family = "vit"

    def __init__(
        self,
        size: ViTSize,
        *,
        image_size: ImageSize,
        channels: int = 3,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        width = size.width
        self.patch_size = size.patch_size
        self.depth = size.depth
        self.num_features = width
        self.remat = remat
        self.dtype = dtype
        self.linear_rate = size.linear_rate
        self.linear_blocks = min(size.linear_blocks, size.depth)
        self.smooth = size.smooth
        self.others = 1 + size.registers  # tokens before the patches
        self.head = width // size.heads
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.patch_embed = (
            ConvStem(channels, width, size.patch_size, **options)
            if size.conv_stem
            else PatchEmbed(channels, width, size.patch_size, trained=size.learned, **options)
        )
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, width)))
        registers, table = None, None
        if size.registers:
            tokens = 0.02 * jax.random.normal(rngs.params(), (1, size.registers, width))
            registers = nnx.Param(tokens)
        height, breadth = height_width(image_size)
        self.grid = height // size.patch_size, breadth // size.patch_size
        if not size.rotary:
            sincos = sincos_table(width, *self.grid, rows_first=size.rows_first)[None]
            table = (nnx.Param if size.learned else Frozen)(jnp.asarray(sincos, jnp.float32))
        self.register_tokens, self.pos_embed = registers, table
        for index in range(size.depth):
            block = Block(
                width,
                size.heads,
                hidden=size.hidden,
                gated=size.gated,
                layer_scale=size.layer_scale,
                epsilon=size.epsilon,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, f"blocks_{index}", block)
        self.norm = nnx.LayerNorm(width, epsilon=size.epsilon, dtype=dtype, rngs=rngs)

    def tokens(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n t d"]:
        """[CLS] and the patches, positions added: the first block's input."""
        height, width = x.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"Images of {height} x {width} do not divide into patches of {self.patch_size} px: "
                f"use a multiple of {self.patch_size}."
            )
        x = self.patch_embed(x, train=train)
        n, rows, columns, width = x.shape
        first, x = self.cls_token[...], x.reshape(n, rows * columns, width)
        if self.pos_embed is not None:
            positions = self.pos_embed[...]
            positions = resize_positions(
                positions, rows, columns, grid=self.grid, smooth=self.smooth
            )
            first, x = first + positions[:, :1], x + positions[:, 1:].astype(x.dtype)
        parts = [first] if self.register_tokens is None else [first, self.register_tokens[...]]
        others = (jnp.broadcast_to(part, (n, *part.shape[1:])).astype(x.dtype) for part in parts)
        return jnp.concatenate([*others, x], axis=1)

    def last_cls(
        self, x: Float[Array, "n h w c"], blocks: int, *, train: bool = False
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

    def linear_features(self, x: Float[Array, "n h w c"], blocks: int) -> Float[Array, "n d"]:
        """What a linear evaluation reads, in evaluation mode.

        Of several last blocks their [CLS] tokens, as `last_cls`; of one, [CLS] and the mean of the
        patches. Source: resa@6b774ef, eval_linear.py.
        """
        if blocks != 1:
            return self.last_cls(x, blocks)
        (y,) = self._outputs(x, 1, train=False)
        y = self.norm(y)
        return jnp.concatenate([y[:, 0], y[:, self.others :].mean(axis=1)], axis=1)

    def linear_settings(self, batch_size: int | None) -> tuple[float, int]:
        """Learning rate per 256 images and blocks to read of the linear evaluation (Table 9).

        Args:
          batch_size: of pre-training; here it does not matter.
        """
        return self.linear_rate, self.linear_blocks

    def _outputs(self, x, last, *, train, branches=None) -> list[Array]:
        """The tokens after each of the last blocks, before the last LayerNorm."""
        rows, columns = (side // self.patch_size for side in x.shape[1:3])
        x, outputs, turns = self.tokens(x, train=train), [], None
        if self.pos_embed is None:
            tables = rotations(rows, columns, self.head, self.others)
            turns = tuple(jnp.asarray(table, x.dtype) for table in tables)
        for index in range(self.depth):
            block = getattr(self, f"blocks_{index}")
            weights = None if branches is None else branches[:, index]
            x = call_block(block, x, turns, weights, train=train, remat=self.remat)
            outputs.append(x)
        return outputs[-last:]

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        branches: Float[Array, "n {self.depth} 2"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "n d"]:
        """
        Args:
          branches: by what each block's attention and MLP are multiplied before they are added:
            stochastic depth (Huang et al., 2016) where some are 0.
        """
        (y,) = self._outputs(x, 1, train=train, branches=branches)
        return self.norm(y[:, 0])
