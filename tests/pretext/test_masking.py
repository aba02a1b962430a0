"""Patch masks: how many, which, and from what randomness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.pretext.patch_masking import KINDS, PatchMaskSettings, bayer, from_noise, kept, random_mask

# int(196 * (1 - ratio)), as the reference computes it
KEPT = {0.1: 176, 0.2: 156, 0.3: 137, 0.4: 117, 0.5: 98, 0.6: 78, 0.7: 58, 0.75: 49, 0.8: 39, 0.9: 19}


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("ratio", KEPT)
def test_the_keep_count_is_truncated(ratio):
    assert kept(196, ratio) == KEPT[ratio]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("rows, columns, ratio, unit", [(1, 9, 0.05, 1), (4, 3, 0.75, 2), (7, 7, 0.6, 1)])
def test_every_example_keeps_exactly_the_same_number(kind, rows, columns, ratio, unit):
    grid = (rows * unit, columns * unit)
    config = PatchMaskSettings(kind, ratio, unit)
    mask = jax.jit(config, static_argnums=1)(keys(3), grid)
    keep = int(rows * columns * (1 - ratio)) * unit**2
    assert mask.visible.shape == (3, keep)
    for visible, hidden, restore in zip(*map(np.asarray, mask), strict=True):
        assert len(set(visible)) == keep
        assert set(np.flatnonzero(~hidden)) == set(visible)
        assert sorted(restore) == list(range(math.prod(grid)))
        np.testing.assert_array_equal(restore[visible], np.arange(keep))
        squares = hidden.reshape(rows, unit, columns, unit)
        assert np.all(squares.all((1, 3)) == squares.any((1, 3)))


def test_random_masks_are_uniform_and_independent():
    """Each patch is hidden with probability 3/4, each pair with 12 x 11 / (16 x 15): within 4.5 standard errors."""
    n = 4000
    hidden = np.asarray(jax.jit(random_mask, static_argnums=(1, 2))(keys(n), 16, 0.75).hidden, np.float64)
    assert np.abs(hidden.mean(0) - 0.75).max() < 4.5 * math.sqrt(0.75 * 0.25 / n)
    pairs = (hidden.T @ hidden / n)[~np.eye(16, dtype=bool)]
    expected = 12 * 11 / (16 * 15)
    assert np.abs(pairs - expected).max() < 4.5 * math.sqrt(expected * (1 - expected) / n)


def test_an_examples_mask_depends_on_its_own_key_only():
    for kind in KINDS:
        config = PatchMaskSettings(kind, 0.6)
        draw = jax.jit(config, static_argnums=1)
        whole, part = draw(keys(6), (5, 4)), draw(keys(6)[2:4], (5, 4))
        np.testing.assert_array_equal(whole.hidden[2:4], part.hidden)


def test_noise_orders_the_visible_patches_as_the_reference_does():
    noise = jnp.asarray([[0.5, 0.1, 0.9, 0.3]])
    mask = from_noise(noise, 2)
    np.testing.assert_array_equal(mask.visible, [[1, 3]])
    np.testing.assert_array_equal(mask.hidden, [[True, False, True, False]])
    np.testing.assert_array_equal(mask.restore, [[2, 0, 3, 1]])


def test_a_grid_mask_at_three_quarters_keeps_every_other_patch_of_every_other_row():
    hidden = np.asarray(PatchMaskSettings("grid", 0.75)(keys(2), (14, 14)).hidden).reshape(2, 14, 14)
    expected = np.ones((14, 14), bool)
    expected[::2, ::2] = False
    np.testing.assert_array_equal(hidden, [expected] * 2)


def test_every_beginning_of_the_dithering_order_is_spread_evenly():
    rank = bayer((8, 8))
    for level in (2, 4):
        first = rank < level**2
        assert np.all(first.reshape(level, 8 // level, level, 8 // level).sum((1, 3)) == 1)


def boundary(hidden: np.ndarray) -> float:
    """The share of neighbouring patches that differ."""
    return float(np.mean(hidden[:, 1:] != hidden[:, :-1]) + np.mean(hidden[:, :, 1:] != hidden[:, :, :-1])) / 2


def test_block_masks_are_made_of_rectangles():
    """Neighbours differ far less often than in a random mask, and at half the patches few rectangles do it."""
    draw = lambda kind: jax.jit(PatchMaskSettings(kind, 0.5), static_argnums=1)(keys(64), (14, 14)).hidden
    masks = {kind: np.asarray(draw(kind)).reshape(-1, 14, 14) for kind in KINDS}
    assert boundary(masks["block"]) < 0.5 * boundary(masks["random"]) < 0.5 * boundary(masks["grid"])
    assert len({m.tobytes() for m in masks["block"]}) == 64


@pytest.mark.parametrize("options, message", [
    (dict(ratio=0.0), r"ratio=0.0: must lie in \(0, 1\)"), (dict(ratio=1.0), r"ratio=1.0: must lie in \(0, 1\)"),
    (dict(kind="blocks"), "kind='blocks': must be one of random, block, grid"), (dict(unit=0), "unit=0: must be at least 1"),
])  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        PatchMaskSettings(**options)


def test_settings_that_leave_nothing_are_named():
    with pytest.raises(UserError, match="task.mask.ratio=0.95 leaves 0 of 4 patches visible"):
        PatchMaskSettings(ratio=0.95).check((2, 2), "task.mask")
    with pytest.raises(UserError, match="task.mask.unit=3: must divide the grid of 4 x 4 patches"):
        PatchMaskSettings(unit=3).check((4, 4), "task.mask")
