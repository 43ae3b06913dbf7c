"""Where a ViT's patches lie: fixed and learned tables, made for other grids, and rotations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sincos_table(dim: int, rows: int, columns: int, *, rows_first: bool) -> np.ndarray:
    """The fixed position table [1 + rows * columns, dim] in float64: [CLS]'s row is zero.

    Each half of the channels is (sin, cos) of one coordinate times 10000^(-4k/dim), k < dim / 4.
    The first half encodes the column (MAE's code and the authors'), or the row if rows_first
    (MoCo v3's). Patches run row by row.
    """
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    angles = np.arange(max(rows, columns))[:, None] * frequencies
    code = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [longer side, dim / 2]
    row = np.broadcast_to(code[:rows, None], (rows, columns, dim // 2))
    column = np.broadcast_to(code[None, :columns], (rows, columns, dim // 2))
    halves = (row, column) if rows_first else (column, row)
    patches = np.concatenate(halves, axis=2).reshape(rows * columns, dim)
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


def smooth_bicubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Bicubic interpolation to n_out places, antialiased where they are fewer, [n_out, n_in].

    `torch.nn.functional.interpolate(size=..., mode="bicubic", antialias=True)`: Keys' kernel with a
    = -0.5, as wide as the step where that is longer than 1, normalised within the borders.
    """
    a, step = -0.5, n_in / n_out
    width = max(step, 1.0)
    centre = (np.arange(n_out) + 0.5) * step
    distance = np.abs(np.arange(n_in) + 0.5 - centre[:, None]) / width
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    matrix = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return matrix / matrix.sum(axis=1, keepdims=True)


def resize_positions(
    table: Float[Array, "1 tokens d"],
    rows: int,
    columns: int,
    *,
    grid: tuple[int, int] | None = None,
    smooth: bool = False,
) -> Float[Array, "1 tokens2 d"]:
    """A position table made one of rows x columns patches; [CLS]'s row stays.

    grid: the table's own rows and columns; None: it is a square's.
    smooth: by `smooth_bicubic_matrix` (DINOv2 with registers) and not by `bicubic_matrix`.
    """
    old_rows, old_columns = grid or (math.isqrt(table.shape[1] - 1),) * 2
    if (rows, columns) == (old_rows, old_columns):
        return table
    patches = table[0, 1:].reshape(old_rows, old_columns, -1)
    matrix = smooth_bicubic_matrix if smooth else bicubic_matrix
    patches = jnp.einsum(
        "ai,bj,ijd->abd",
        jnp.asarray(matrix(old_rows, rows), table.dtype),
        jnp.asarray(matrix(old_columns, columns), table.dtype),
        patches,
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.concatenate([table[0, :1], patches.reshape(rows * columns, -1)])[None]


def rotations(
    rows: int, columns: int, head: int, others: int
) -> tuple[Float[np.ndarray, "t d"], Float[np.ndarray, "t d"]]:
    """Cosines and sines by which DINOv3 rotates queries and keys, float64.

    A patch's centre has coordinates from -1 to 1 along rows and columns; each turns head / 4 pairs
    by 2 pi times itself times 100^(-4k/head), k < head / 4. Siméoni et al. (2025), DINOv3, section
    3.2; facebookresearch/dinov3, layers/rope_position_encoding.py.

    Args:
      rows, columns: of the grid of patches, which come row by row.
      head: dimensions of a head, divisible by 4.
      others: tokens before the patches, which are not rotated.
    """
    frequencies = 2 * np.pi * 100.0 ** -(np.arange(head // 4) * 4 / head)
    axes = [2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns)]
    row, column = (grid.reshape(-1, 1) for grid in np.meshgrid(*axes, indexing="ij"))
    angles = np.tile(np.concatenate([row * frequencies, column * frequencies], axis=1), 2)
    angles = np.concatenate([np.zeros((others, head)), angles])
    return np.cos(angles), np.sin(angles)


def rotate(
    x: Float[Array, "n t d"], cosines: Float[Array, "t d"], sines: Float[Array, "t d"]
) -> Float[Array, "n t d"]:
    """Turns the pairs (k, k + d/2) of each token's vector by its angles."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cosines + jnp.concatenate([-second, first], axis=-1) * sines
