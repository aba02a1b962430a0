"""Schedules against the published code's arithmetic, written out here in Python floats."""

import math

import numpy as np
import pytest

from ssl_jax.training import schedules


def factors(name, total, **options):
    return np.array([float(schedules.multiplier(name, step, total=total, **options)) for step in range(total + 1)])


def test_mae_warms_up_from_exactly_zero_and_falls_by_half_a_cosine():
    """util/lr_sched.py: lr * epoch / warmup, then min + (lr - min) (1 + cos(pi (epoch - warmup) / (epochs - warmup))) / 2."""
    total, warmup, final = 100, 10, 0.01
    got = factors("warmup_cosine", total, warmup=warmup, final=final)
    want = [
        s / warmup if s < warmup else final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (s - warmup) / (total - warmup)))
        for s in range(total + 1)
    ]
    assert got[0] == 0.0 and got[warmup] == 1.0
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


def test_nanogpt_starts_above_zero():
    """get_lr: lr (it + 1) / (warmup + 1); then cosine to min_lr at lr_decay_iters."""
    total, warmup, final = 50, 5, 0.1
    got = factors("warmup_cosine", total, warmup=warmup, final=final, offset=1)

    def get_lr(it):
        if it < warmup:
            return (it + 1) / (warmup + 1)
        ratio = (it - warmup) / (total - warmup)
        return final + 0.5 * (1 + math.cos(math.pi * ratio)) * (1 - final)

    np.testing.assert_allclose(got, [get_lr(it) for it in range(total + 1)], rtol=2e-6, atol=1e-7)


def test_icarus_takes_the_smaller_of_warmup_and_cosine():
    """lr_func of IcarusWizard/MAE: min((t + 1) / warmup, (cos(t / T pi) + 1) / 2)."""
    total, warmup = 60, 12
    got = factors("warmup_min_cosine", total, warmup=warmup)
    want = [min(t / warmup, 0.5 * (math.cos(t / total * math.pi) + 1)) for t in range(total + 1)]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


def test_bert_falls_in_a_straight_line():
    got = factors("linear", 40, warmup=4)
    want = [s / 4 if s < 4 else 1 - (s - 4) / 36 for s in range(41)]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_the_cooldown_covers_the_last_steps_only(shape):
    got = factors("warmup_stable_decay", 100, warmup=10, cooldown=20, final=0.1, shape=shape)
    assert (got[10:81] == 1.0).all() and got[0] == 0.0
    x = np.arange(21) / 20
    want = 0.1 + 0.9 * (1 - (np.sqrt(x) if shape == "sqrt" else x))
    np.testing.assert_allclose(got[80:], want, rtol=2e-6, atol=1e-6)


def test_a_constant_rate_after_warmup():
    got = factors("constant", 10, warmup=4, start=0.2)
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8] + [1.0] * 7, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SHAPES)
def test_every_schedule_is_finite_and_within_its_range(name):
    for warmup in (0, 1, 10):
        got = factors(name, 10, warmup=warmup, cooldown=10, final=0.0)
        assert np.isfinite(got).all() and got.min() >= -1e-6 and got.max() <= 1 + 1e-6
