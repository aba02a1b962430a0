"""Multi-block masks (I-JEPA: Assran et al. 2023, section 3): a context block of an image and the targets cut out of it.

All blocks of a kind have one size in a batch, drawn from the step's key; their positions are drawn from each example's key.
The reference (src/masks/multiblock.py) derives scale and aspect ratio from one number, never places a block in the last row or
column, and truncates every context to the batch's shortest in raster order. Here scale and aspect ratio are independent,
as in the paper, and a context that is too large loses random patches.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from ssl_jax.errors import UserError
from ssl_jax.randomness import substream

Grid = tuple[int, int]  # rows, columns of patches
ATTEMPTS = 8  # sets of blocks drawn for an example; the first with a large enough context is used


class Blocks(NamedTuple):
    """A context and its targets as patch numbers, padded to one length; 0 in `seen` and `real` marks padding."""

    context: Int[Array, "batch kept"]  # distinct in each row
    seen: Int[Array, "batch kept"]
    targets: Int[Array, "batch targets most"]
    real: Int[Array, "most"]
    valid: Bool[Array, "batch"]  # whether the context holds more than `least` patches


@dataclasses.dataclass(frozen=True)
class BlockMaskSettings:
    """The defaults are I-JEPA's for every size of model (Assran et al. 2023, appendix A.1)."""

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)  # share of the patches
    target_aspect: tuple[float, float] = (0.75, 1.5)  # height / width
    context_scale: tuple[float, float] = (0.85, 1.0)  # of a square, before the targets are cut out
    kept: float = 0.5  # the most patches of a context that the encoder reads, as a share of all
    min_keep: int | None = None  # a context must hold more patches; default: the published 10 of 14 x 14, in proportion

    def __post_init__(self):
        for name, low, high in (("target_scale", 0, 1), ("target_aspect", 0, 100), ("context_scale", 0, 1)):
            a, b = getattr(self, name)
            if not low < a <= b <= high:
                raise UserError(f"{name}={(a, b)}: must be (from, to) with {low} < from <= to <= {high}")
        if not 1 <= self.targets <= 64:
            raise UserError(f"targets={self.targets}: must lie in [1, 64]")
        if not 0 < self.kept <= 1:
            raise UserError(f"kept={self.kept}: must lie in (0, 1]")
        if self.min_keep is not None and self.min_keep < 0:
            raise UserError(f"min_keep={self.min_keep}: must not be negative")

    def check(self, grid: Grid, path: str) -> None:
        """Raise UserError if a grid has too few patches for the settings."""
        most = self.context_sizes(grid).prod(1).max() - self.target_sizes(grid).prod(1).min()
        if min(most, self.most(grid)) <= self.least(grid):
            raise UserError(
                f"{path}.min_keep={self.least(grid)}: a context holds at most {min(most, self.most(grid))} of the "
                f"{grid[0]} x {grid[1]} patches; use smaller patches, smaller targets or a smaller min_keep"
            )

    def least(self, grid: Grid) -> int:
        """Return the number of patches that a context must exceed."""
        return math.prod(grid) * 10 // 196 if self.min_keep is None else self.min_keep

    def most(self, grid: Grid) -> int:
        """Return the number of context patches that the encoder reads, including padding."""
        return max(1, round(self.kept * math.prod(grid)))

    def target_sizes(self, grid: Grid) -> Int[np.ndarray, "sizes 2"]:
        return block_sizes(grid, self.target_scale, self.target_aspect)

    def context_sizes(self, grid: Grid) -> Int[np.ndarray, "sizes 2"]:
        return block_sizes(grid, self.context_scale, (1.0, 1.0))

    def __call__(self, key: Key[Array, ""], keys: Key[Array, "batch"], grid: Grid) -> Blocks:
        """Draw the sizes of the batch's blocks from `key`, and their positions in each example from `keys`."""
        rows, columns = grid
        sizes = self.target_sizes(grid)
        target, context = draw(substream(key, "target"), sizes), draw(substream(key, "context"), self.context_sizes(grid))
        place = jnp.arange(sizes.prod(1).max())
        real = place < target[0] * target[1]

        def attempt(key):
            down, right = jnp.moveaxis(jax.random.uniform(key, (self.targets + 1, 2)), -1, 0)
            tops, lefts = jnp.floor(down[1:] * (rows - target[0] + 1)), jnp.floor(right[1:] * (columns - target[1] + 1))
            top, left = jnp.floor(down[0] * (rows - context[0] + 1)), jnp.floor(right[0] * (columns - context[1] + 1))
            corners = jnp.stack([tops, lefts], axis=1).astype(jnp.int32)
            allowed = inside((top, left), context, grid)
            for i in range(self.targets):
                allowed &= ~inside(corners[i], target, grid)
            return corners, allowed

        def one(key):
            corners, allowed = jax.vmap(attempt)(jax.random.split(substream(key, "places"), ATTEMPTS))
            enough = jnp.sum(allowed, axis=1) > self.least(grid)
            first = jnp.argmax(enough)
            corners, allowed = corners[first], allowed[first]
            noise = jax.random.uniform(substream(key, "context"), (rows * columns,))
            chosen = jnp.argsort(jnp.where(allowed, noise, 2.0))[: self.most(grid)].astype(jnp.int32)
            within = (place // target[1]) * columns + place % target[1]
            targets = corners[:, :1] * columns + corners[:, 1:] + jnp.where(real, within, 0)
            return chosen, allowed[chosen].astype(jnp.int32), targets, enough.any()

        chosen, seen, targets, valid = jax.vmap(one)(keys)
        return Blocks(chosen, seen, targets, real.astype(jnp.int32), valid)


def block_sizes(grid: Grid, scale: tuple[float, float], aspect: tuple[float, float], steps: int = 64) -> Int[np.ndarray, "s 2"]:
    """Return heights and widths of blocks for `steps` x `steps` evenly spaced scales and aspect ratios, to draw from."""
    middle = (np.arange(steps) + 0.5) / steps
    area = math.prod(grid) * (scale[0] + (scale[1] - scale[0]) * middle[:, None])
    ratio = aspect[0] + (aspect[1] - aspect[0]) * middle[None]
    sides = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=-1).reshape(-1, 2)
    return np.clip(np.round(sides), 1, grid).astype(np.int32)


def draw(key: Key[Array, ""], table: Int[np.ndarray, "rows n"]) -> Int[Array, "n"]:
    return jnp.asarray(table)[jax.random.randint(key, (), 0, len(table))]


def inside(corner, size, grid: Grid) -> Bool[Array, "patches"]:
    """Return a mask of the patches of the block of `size` (rows, columns) whose top left patch is `corner`."""
    row, column = jnp.divmod(jnp.arange(math.prod(grid)), grid[1])
    top, left = corner
    return (row >= top) & (row < top + size[0]) & (column >= left) & (column < left + size[1])
