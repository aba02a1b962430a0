"""Masks of image patches: pure functions of one key per example.

Every kind keeps exactly `kept(patches, ratio)` patches of each example, so that shapes are static.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.errors import UserError
from ssl_jax.randomness import substream

Grid = tuple[int, int]  # rows, columns of patches


class Mask(NamedTuple):
    """`visible`: the patches that the encoder reads; `hidden`: True for hidden patches; `restore`: each patch's rank in
    the shuffled order, below `kept` for visible patches."""

    visible: Int[Array, "batch kept"]
    hidden: Bool[Array, "batch patches"]
    restore: Int[Array, "batch patches"]


@dataclasses.dataclass(frozen=True)
class PatchMaskSettings:
    """How patches are hidden: `kind` "random", "block" or "grid" (He et al. 2022, figure 6), `ratio` of them."""

    kind: str = "random"
    ratio: float = 0.75
    unit: int = 1  # hide squares of unit x unit patches (SimMIM's mask patch size / patch size)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r}: must be one of {', '.join(KINDS)}")
        if not 0 < self.ratio < 1:
            raise UserError(f"ratio={self.ratio}: must lie in (0, 1)")
        if self.unit < 1:
            raise UserError(f"unit={self.unit}: must be at least 1")

    def kept(self, grid: Grid) -> int:
        """Return the number of visible patches."""
        return kept(math.prod(grid) // self.unit**2, self.ratio) * self.unit**2

    def check(self, grid: Grid, path: str) -> None:
        """Raise UserError if the settings do not fit a grid of patches."""
        if grid[0] % self.unit or grid[1] % self.unit:
            raise UserError(f"{path}.unit={self.unit}: must divide the grid of {grid[0]} x {grid[1]} patches")
        if not 0 < self.kept(grid) < math.prod(grid):
            seen = self.kept(grid)
            raise UserError(
                f"{path}.ratio={self.ratio} leaves {seen} of {math.prod(grid)} patches visible; choose one nearer 0.5"
            )

    def __call__(self, keys: Key[Array, "batch"], grid: Grid) -> Mask:
        coarse = (grid[0] // self.unit, grid[1] // self.unit)
        noise = jax.vmap(lambda key: KINDS[self.kind](key, coarse, self.ratio))(keys)
        if self.unit > 1:  # equal noise within a unit; the sort is stable, so units stay whole
            order = jnp.argsort(jnp.argsort(noise)).astype(jnp.float32).reshape(-1, *coarse)
            noise = order.repeat(self.unit, 1).repeat(self.unit, 2).reshape(order.shape[0], -1)
        return from_noise(noise, self.kept(grid))


@dataclasses.dataclass(frozen=True)
class BlockMask(PatchMaskSettings):
    """The masks of BEiT (Bao et al. 2022) and data2vec's images."""

    kind: str = "block"
    ratio: float = 0.6


def kept(patches: int, ratio: float) -> int:
    """Return the number of visible patches, rounded down as in the reference (196 patches at 0.75: 49; at 0.9: 19)."""
    return int(patches * (1 - ratio))


def from_noise(noise: Float[Array, "batch patches"], keep: int) -> Mask:
    """Return the mask whose visible patches have the least noise, in the order of their noise (the reference's
    random_masking)."""
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    restore = jnp.argsort(order, axis=1).astype(jnp.int32)
    return Mask(order[:, :keep], restore >= keep, restore)


def random_mask(keys: Key[Array, "batch"], patches: int, ratio: float) -> Mask:
    """Hide patches uniformly at random, independently for each example."""
    return from_noise(jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys), kept(patches, ratio))


# Kinds: (key, grid, ratio) -> noise f32[patches]; the patches of the largest noise are hidden ---------------------------


def _random(key: Key[Array, ""], grid: Grid, ratio: float) -> Float[Array, "patches"]:
    return jax.random.uniform(key, (math.prod(grid),))


def _block(key: Key[Array, ""], grid: Grid, ratio: float, tries: int = 32) -> Float[Array, "patches"]:
    """Cover rectangles one after another until enough patches are hidden (Bao et al. 2022, algorithm 1).

    Areas are uniform between 16/196 of the grid and the area that remains to hide, aspect ratios log-uniform in (0.3, 1/0.3).
    The last rectangle is filled row by row and only as far as needed; if `tries` rectangles are not enough, random patches
    are hidden in addition.
    """
    rows, columns = grid
    patches = rows * columns
    hide = patches - kept(patches, ratio)
    least = 16 / 196 * patches
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None]

    def rectangle(covered_at, t_key):
        t, key = t_key
        a, b, c, d = jax.random.uniform(key, (4,))
        remaining = hide - jnp.sum(covered_at < tries)
        area = least + a * jnp.maximum(remaining - least, 0)
        aspect = jnp.exp((2 * b - 1) * math.log(1 / 0.3))
        height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
        width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
        top, left = jnp.floor(c * (rows - height + 1)), jnp.floor(d * (columns - width + 1))
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        return jnp.where(inside, jnp.minimum(covered_at, t), covered_at), None

    times = jnp.arange(tries, dtype=jnp.float32)
    start = jnp.full(grid, tries, jnp.float32)
    covered_at, _ = jax.lax.scan(rectangle, start, (times, jax.random.split(key, tries)))
    covered_at, place = covered_at.ravel(), jnp.arange(patches) / patches
    chance = jax.random.uniform(jax.random.fold_in(key, tries), (patches,))
    return -covered_at - jnp.where(covered_at < tries, place, chance)


def _grid(key: Key[Array, ""], grid: Grid, ratio: float) -> Float[Array, "patches"]:
    """Show the same regular lattice in every example; at 0.75 every other patch of every other row is visible.

    Ratios other than 1 - 1/4^n add patches in the order of ordered dithering (Bayer 1973).
    """
    return jnp.asarray(bayer(grid), jnp.float32).ravel()


def bayer(grid: Grid) -> Int[np.ndarray, "rows columns"]:
    """Return each patch's rank in an order in which every prefix is spread evenly over the grid."""
    levels = max(1, math.ceil(math.log2(max(grid))))
    rank = np.zeros((1, 1), np.int64)
    for _ in range(levels):
        rank = np.block([[4 * rank, 4 * rank + 2], [4 * rank + 3, 4 * rank + 1]])
    part = rank[: grid[0], : grid[1]]
    return np.argsort(np.argsort(part, axis=None)).reshape(grid)


KINDS = {"random": _random, "block": _block, "grid": _grid}


# A varying number of patches --------------------------------------------------------------------------------------------


class HiddenBlocks(NamedTuple):
    """Blocks of patches hidden from one image, padded to one length; 0 in `real` marks padding."""

    hidden: Bool[Array, "patches"]
    places: Int[Array, "most"]
    real: Float[Array, "most"]


def hidden_blocks(key: Key[Array, ""], grid: Grid, ratio: tuple[float, float], prob: float) -> HiddenBlocks:
    """With probability `prob`, hide blocks that cover a share of the patches uniform in `ratio`; else hide none (iBOT)."""
    patches, (chance, draw) = math.prod(grid), jax.random.uniform(substream(key, "share"), (2,))
    most = max(1, math.floor(ratio[1] * patches))
    share = jnp.where(chance < prob, ratio[0] + (ratio[1] - ratio[0]) * draw, 0)
    count = jnp.minimum(jnp.round(share * patches), most)
    places = jnp.argsort(-_block(substream(key, "blocks"), grid, most / patches))[:most].astype(jnp.int32)
    real = jnp.arange(most) < count
    hidden = jnp.zeros(patches, bool).at[places].set(real)
    return HiddenBlocks(hidden, places, real.astype(jnp.float32))
