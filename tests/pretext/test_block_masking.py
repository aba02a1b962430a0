"""Multi-block masks: sizes, places and counts over thousands of draws, on grids of every size."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.pretext.block_masking import BlockMaskSettings

GRIDS = [(14, 14), (8, 8), (7, 7), (4, 4), (6, 10)]


@functools.cache
def draws(grid, count, config=BlockMaskSettings(), examples=1):  # noqa: B008 (frozen)
    """`count` batches of `examples` each: arrays [count, examples, ...]."""

    @jax.jit
    def batches(numbers):
        def batch(i):
            key = jax.random.fold_in(jax.random.key(0), i)
            return config(key, jax.random.split(jax.random.fold_in(key, 1), examples), grid)

        return jax.lax.map(batch, numbers, batch_size=500)

    return jax.tree.map(np.asarray, batches(jnp.arange(count)))


def sets(blocks, i, b):
    """(context, [targets]) of an example as sets of patches."""
    context = set(blocks.context[i, b][blocks.seen[i, b] > 0].tolist())
    return context, [set(row[blocks.real[i] > 0].tolist()) for row in blocks.targets[i, b]]


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_are_rectangles_of_the_published_sizes(grid):
    """Over 10,000 draws: scale in [0.15, 0.2] and aspect in [0.75, 1.5] up to rounding, all of a batch alike."""
    blocks, columns = draws(grid, *((2000, BlockMaskSettings(), 5) if grid == (14, 14) else (300,))), grid[1]
    row, column = blocks.targets[:, 0] // columns, blocks.targets[:, 0] % columns
    real = np.broadcast_to(blocks.real[:, None] > 0, row.shape)
    extent = lambda x: np.where(real, x, -1).max(-1) - np.where(real, x, 99).min(-1) + 1
    height, width = extent(row), extent(column)
    np.testing.assert_array_equal(height * width, real.sum(-1))  # so all of the rectangle is there, once
    assert (height == height[:, :1]).all() and (width == width[:, :1]).all()
    area, aspect = math.prod(grid) * np.array([0.15, 0.2]), (0.75, 1.5)
    low, high = lambda side: side - 0.5, lambda side: side + 0.5  # each side was rounded
    assert (low(height) * low(width) <= area[1]).all() and (high(height) * high(width) >= area[0]).all()
    assert (low(height) / high(width) <= aspect[1]).all() and (high(height) / low(width) >= aspect[0]).all()
    if grid == (14, 14):
        share = height * width / 196
        assert 0.165 < share.mean() < 0.185 and 1.0 < (height / width).mean() < 1.25


@pytest.mark.parametrize("grid", GRIDS)
def test_context_and_targets_never_overlap(grid):
    """Over 10,000 draws on 14 x 14: no patch is both, no patch stands twice in a context, whose size is within its bounds."""
    blocks, patches = draws(grid, *((2000, BlockMaskSettings(), 5) if grid == (14, 14) else (300,))), math.prod(grid)
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    context, seen, targets = flat(blocks.context), flat(blocks.seen) > 0, flat(blocks.targets)
    real = np.broadcast_to(blocks.real[:, None, None] > 0, blocks.targets.shape).reshape(targets.shape)
    assert context.min() >= 0 and context.max() < patches and targets.max() < patches
    row = np.arange(len(context)).reshape(-1, 1)
    in_context, in_target = (np.zeros((len(context), patches), int) for _ in range(2))
    np.add.at(in_context, (np.broadcast_to(row, context.shape)[seen], context[seen]), 1)
    in_target[np.broadcast_to(row[..., None], targets.shape)[real], targets[real]] = 1
    assert in_context.max() == 1 and not (in_context & in_target).any()
    count = in_context.sum(1)
    assert count.max() <= BlockMaskSettings().most(grid)
    assert (count[flat(blocks.valid)] > BlockMaskSettings().least(grid)).all() and blocks.valid.mean() > 0.999


def test_a_context_is_a_block_less_the_targets():
    """With kept=1 nothing else is left out: 46 % of 14 x 14 patches on average."""
    blocks = draws((14, 14), 1000, BlockMaskSettings(kept=1.0))
    for i in range(200):
        context, targets = sets(blocks, i, 0)
        row, column = np.divmod(sorted(context), 14)
        box = {14 * r + c for r in range(row.min(), row.max() + 1) for c in range(column.min(), column.max() + 1)}
        assert box - set().union(*targets) == context and len(box) <= 196
    assert 0.44 < blocks.seen.sum((1, 2)).mean() / 196 < 0.48


def test_every_place_is_reached_alike():
    """Blocks lie in the last row and column as often as in the first, which the reference never reaches."""
    blocks = draws((14, 14), 2000, BlockMaskSettings(), 5)
    real = blocks.real[:, None] > 0
    row, column = blocks.targets[:, 0] // 14, blocks.targets[:, 0] % 14
    for place in (row, column):
        first = (np.where(real, place, 99).min(-1) == 0).mean()
        last = (np.where(real, place, 0).max(-1) == 13).mean()
        assert first == pytest.approx(last, abs=0.03) and 0.08 < first < 0.2


def test_a_large_context_loses_patches_evenly():
    """The reference cuts contexts in raster order, so that the lower rows are read less often."""
    config = BlockMaskSettings(kept=0.1)
    blocks = draws((14, 14), 1000, config)
    assert (blocks.seen.sum(-1) == config.most((14, 14))).mean() > 0.99
    rows = np.bincount((blocks.context[blocks.seen > 0] // 14).ravel(), minlength=14)
    halves = rows[:7].sum(), rows[7:].sum()
    assert halves[0] == pytest.approx(halves[1], rel=0.05)


def test_examples_differ_and_sizes_are_the_batchs():
    config = BlockMaskSettings()
    key, keys = jax.random.key(3), jax.random.split(jax.random.key(4), 6)
    run = jax.jit(config, static_argnums=2)
    whole, part = run(key, keys, (7, 7)), run(key, keys[2:4], (7, 7))
    for a, b in zip(whole[:3], part[:3], strict=True):
        np.testing.assert_array_equal(a[2:4], b)  # no example depends on its neighbours
    np.testing.assert_array_equal(whole.real, part.real)
    assert len({tuple(row) for row in np.asarray(whole.targets[:, 0])}) == 6


def test_too_small_contexts_are_drawn_again_and_at_last_marked():
    """A minimum that half of the contexts would miss is met by most; one that none can meet makes all invalid."""
    often = draws((8, 8), 300, BlockMaskSettings(min_keep=28, kept=1.0))
    share = often.valid.mean()
    assert share > 0.85 and (often.seen.sum(-1) > 28)[often.valid].all()
    assert not draws((8, 8), 5, BlockMaskSettings(min_keep=63, kept=1.0)).valid.any()


def test_constants_scale_to_the_grid_and_misfits_are_refused():
    least = BlockMaskSettings().least
    assert [least(grid) for grid in ((14, 14), (16, 16), (8, 8), (7, 7), (4, 4))] == [10, 13, 3, 2, 0]
    BlockMaskSettings().check((7, 7), "task.mask")
    with pytest.raises(UserError, match=r"task.mask.min_keep=10: a context holds at most 8 of the 4 x 4 patches"):
        BlockMaskSettings(min_keep=10).check((4, 4), "task.mask")
    for wrong in (
        dict(target_scale=(0.2, 0.1)),
        dict(targets=0),
        dict(kept=0.0),
        dict(min_keep=-1),
        dict(context_scale=(0.5, 1.2)),
    ):
        with pytest.raises(UserError):
            BlockMaskSettings(**wrong)
