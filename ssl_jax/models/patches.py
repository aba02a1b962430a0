"""Images as sequences of patches: splitting, joining, selecting, and position encodings."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

Grid = tuple[int, int]


def patchify(images: Float[Array, "batch height width channels"], patch: Grid) -> Float[Array, "batch patches pixels"]:
    """Return patches row by row, each flattened as (row, column, channel): the MAE reference's `nchpwq->nhwpqc`.

    Pixels at the right and bottom edges that fill no whole patch are dropped, as by a strided convolution.
    """
    b, h, w, c = images.shape
    p, q = patch
    x = images[:, : h - h % p, : w - w % q].reshape(b, h // p, p, w // q, q, c).swapaxes(2, 3)
    return x.reshape(b, (h // p) * (w // q), p * q * c)


def unpatchify(patches: Shaped[Array, "batch patches pixels"], patch: Grid, grid: Grid) -> Shaped[Array, "batch h w channels"]:
    """Invert `patchify` for a grid of (rows, columns) patches."""
    b, (p, q), (rows, columns) = patches.shape[0], patch, grid
    x = patches.reshape(b, rows, columns, p, q, -1).swapaxes(2, 3)
    return x.reshape(b, rows * p, columns * q, -1)


def sincos2d(width: int, grid: Grid) -> Float[np.ndarray, "patches width"]:
    """Return fixed 2-D sine-cosine positions: the first half of the channels encodes the column, the second the row.

    Each half is [sin(x w_i), cos(x w_i)] with w_i = 10000^(-i / (width / 4)) (Vaswani et al. 2017; the order is that of
    the MAE reference, where the grid's first coordinate is the column). `width` must be a multiple of 4.
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    halves = [np.concatenate([np.sin(a), np.cos(a)], axis=1) for a in (np.outer(column, frequency), np.outer(row, frequency))]
    return np.concatenate(halves, axis=1).astype(np.float32)


def relative_index(grid: Grid) -> Int[np.ndarray, "tokens tokens"]:
    """Return the row of the relative-position table for each query (row) and key (column); the class token is token 0.

    The table begins with the offsets between patches (vertical first), followed by class token to patch, patch to class token,
    and class token to itself (the published code of Bao et al. 2022).
    """
    rows, columns = grid
    down, across = np.divmod(np.arange(rows * columns), columns)
    offset = lambda x, n: x[:, None] - x[None] + n - 1
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = np.pad(offset(down, rows) * (2 * columns - 1) + offset(across, columns), ((1, 0), (1, 0)))
    index[0], index[1:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


def resample(
    table: Float[Array | np.ndarray, "patches dim"], old: Grid, new: Grid
) -> Float[Array | np.ndarray, "{new[0]*new[1]} dim"]:
    """Interpolate values on a grid of patches bicubically to another grid, as torch does: edges repeat, no antialiasing.

    NumPy arrays give NumPy arrays; JAX arrays stay on the device and are multiplied by two constant matrices.
    """
    numpy = np if isinstance(table, np.ndarray) else jnp
    rows, columns = (numpy.asarray(bicubic(a, b), table.dtype) for a, b in zip(old, new, strict=True))
    options = {} if numpy is np else dict(precision="highest")
    return numpy.einsum("ah,bw,hwd->abd", rows, columns, table.reshape(*old, -1), **options).reshape(new[0] * new[1], -1)


def bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix that resamples `old` values to `new`: cubic convolution with a = -0.75 (Keys 1981, equation 15)."""
    a, place = -0.75, (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        d = np.abs(place - first - tap)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        weight = np.where(d <= 1, near, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix


def resize_kernel(
    kernel: Float[Array | np.ndarray, "pixels dim"], old: Grid, new: Grid
) -> Float[np.ndarray, "{new[0]*new[1]*(len(kernel)//(old[0]*old[1]))} dim"]:
    """Resize a patch embedding to patches of `new` = (height, width) pixels (Beyer et al. 2023, FlexiViT, section 3.4).

    The result is pinv(B^T) times the kernel, with B the bilinear resize of a patch: an enlarged patch keeps its embedding
    exactly; for a smaller patch it is the least-squares fit.
    """
    rows, columns = (np.linalg.pinv(bilinear(a, b).T) for a, b in zip(old, new, strict=True))
    image = np.asarray(kernel, np.float64).reshape(*old, -1)
    return np.einsum("ah,bw,hwd->abd", rows, columns, image).reshape(-1, kernel.shape[1]).astype(np.float32)


def bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix that resamples `old` values to `new` linearly; edges repeat, no antialiasing."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(old)))


def inverse_of(indices: Int[Array, "batch kept"], count: int) -> Int[Array, "batch count"]:
    """Return the position of each of 0 .. count - 1 in `indices` (distinct in each row), -1 if absent."""
    match = indices[:, :, None] == jnp.arange(count)
    return jnp.where(match.any(1), match.argmax(1), -1).astype(indices.dtype)


@jax.custom_vjp
def pick(
    x: Float[Array, "batch source dim"], indices: Int[Array, "batch kept"], inverse: Int[Array, "batch source"]
) -> Float[Array, "batch kept dim"]:
    """Return x[b, indices[b]], zero where an index is -1; `inverse` is `inverse_of(indices, source)`.

    Since the indices are distinct, the gradient is a gather too, with `indices` and `inverse` exchanged; autodiff would emit a
    scatter, which is a sequential loop on a CPU.
    """
    return jnp.where(indices[..., None] < 0, 0, take(x, jnp.maximum(indices, 0)))


pick.defvjp(
    lambda x, indices, inverse: (pick(x, indices, inverse), (indices, inverse)),
    lambda residual, g: (pick(g, residual[1], residual[0]), None, None),
)


def take(x: Float[Array, "batch source dim"], indices: Int[Array, "batch kept"]) -> Float[Array, "batch kept dim"]:
    """Return x[b, indices[b]] for indices known to be in range."""
    return jnp.take_along_axis(x, indices[..., None], axis=1, mode="promise_in_bounds")
