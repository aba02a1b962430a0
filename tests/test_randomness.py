"""What dropout draws: the stated share, independently, from the example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.randomness import drop, keep

KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 33), (2048,), (1,)])
def test_the_share_that_is_kept_is_binomial(rate, shape):
    kept = np.asarray(keep(KEYS, rate, shape))
    assert kept.shape == (64, *shape)
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation


def test_no_two_places_are_drawn_alike():
    """Neighbours, the two halves of a word and two examples agree as often as chance."""
    kept = np.asarray(keep(KEYS, 0.5, (32, 64)))
    pairs = {
        "neighbours": (kept[..., :-1], kept[..., 1:]), "rows": (kept[:, :-1], kept[:, 1:]),
        "halves": (kept[..., :32], kept[..., 32:]), "examples": (kept[:-1], kept[1:]),
    }  # fmt: skip
    for name, (a, b) in pairs.items():
        assert abs(np.mean(a == b) - 0.5) < 5 * np.sqrt(0.25 / a.size), name


def test_an_example_is_drawn_from_its_own_key():
    np.testing.assert_array_equal(keep(KEYS, 0.3, (5, 7))[3:5], keep(KEYS[3:5], 0.3, (5, 7)))


def test_what_is_kept_is_scaled_by_the_share_that_is_really_kept():
    """0.1 is drawn as 6554 / 65536."""
    x = jnp.full((64, 16), 2.0)
    np.testing.assert_allclose(np.unique(drop(x, keep(KEYS, 0.1, (16,)), 0.1)), [0, 2 / (1 - 6554 / 65536)], rtol=1e-6)
    assert drop(x, None, 0.1) is x
