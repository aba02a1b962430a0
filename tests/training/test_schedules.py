"""Schedules against the published code's arithmetic, written out here in Python floats."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.training import optimizer, schedules
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.schedules import Schedules
from ssl_jax.training.state import State
from ssl_jax.training.step import TrainStep
from tests.downstream.downstream_toys import ToyTask


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


# The config's section `schedules` -------------------------------------------------------------------------------------

TOTAL = 200


def half_cosine(start, end, steps):
    """cosine_scheduler of facebookresearch/dino, utils.py, and CosineWDSchedule of facebookresearch/ijepa."""
    return lambda i: end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(i / steps, 1)))


def line(start, end, steps):
    """momentum_scheduler of facebookresearch/ijepa; get_annealed_rate of fairseq's data2vec."""
    return lambda i: start + (end - start) * min(i / steps, 1)


# name of the schedule: (its section, the published formula of the step)
PUBLISHED = {
    "ema": (dict(start=0.996, end=1.0), half_cosine(0.996, 1.0, TOTAL)),
    "weight_decay": (dict(start=0.04, end=0.4), half_cosine(0.04, 0.4, TOTAL)),
    "teacher_temperature": (dict(start=0.04, end=0.07, shape="linear", over="60 steps"), line(0.04, 0.07, 60)),
    "temperature": (dict(start=0.5, end=0.1, shape="step", over="50 steps"), lambda i: 0.5 if i < 50 else 0.1),
}


def scheduled(**changes):
    """The schedules of PUBLISHED, read from a section, and the numbers of State.hyper that go with them."""
    section = {name: value for name, (value, _) in PUBLISHED.items()} | changes
    found = Schedules.read(section, dict(teacher_temperature=0.04, temperature=0.5))
    steps = lambda schedule: TOTAL if schedule.over == "100 %" else int(schedule.over.split()[0])
    return found, {"schedules": {name: value.numbers(steps(value)) for name, value in found.by_name().items()}}


def step_of(found):
    """A step of which only the schedules are looked at."""
    update = optax.with_extra_args_support(optax.identity())
    return TrainStep(ToyTask(), lambda resident, batch, key: batch, update, OptimizerSettings(lr=1.0), found)


def first_middle_last(formula):
    return [(step, formula(step)) for step in (0, 1, TOTAL // 4, TOTAL // 2, TOTAL - 1)]


@pytest.mark.parametrize("name", ["teacher_temperature", "temperature"])
def test_a_task_is_told_its_numbers_at_every_step(name):
    found, hyper = scheduled()
    step = step_of(found)
    for i, want in first_middle_last(PUBLISHED[name][1]):
        context = step.context(State(jnp.int32(i), {}, {}, None, hyper | dict(numbers={}, total_steps=TOTAL), {}))
        assert float(context.numbers[name]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("section", [{}, dict(ema=dict(start=0.99, end=0.999, shape="linear", over="60 steps"))])
def test_the_teacher_moves_by_the_scheduled_decay(section):
    """ema' = d ema + (1 - d) params, with d of the step before the update (DINO and I-JEPA: the same; data2vec: a ramp)."""
    found, hyper = scheduled(**section)
    step = step_of(found)
    for i, decay in first_middle_last(line(0.99, 0.999, 60) if section else PUBLISHED["ema"][1]):
        moved = step.averaged(State(jnp.int32(i), {}, {}, {"w": jnp.float32(0.0)}, hyper, {}), {"w": jnp.float32(1.0)})
        assert float(moved["w"]) == pytest.approx(1 - decay, abs=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weights_decay_by_the_schedule(name):
    """Without a gradient the only update is -lr decay w; where a rule multiplies the learning rate by 0 there is none."""
    rule = ("head/.*", dict(start=0.0, end=1.0, shape="step", over="10 steps"))
    found, hyper = scheduled(lr=[rule])
    params = {"body": {"kernel": jnp.full((2, 2), 3.0)}, "head": {"kernel": jnp.full((2, 2), 5.0)}}
    update = optimizer.build(OptimizerSettings(name=name, lr=0.5, schedule="constant", momentum=0.0), params, TOTAL, found)
    zero = {name: {"kernel": jnp.zeros((2, 2))} for name in params}
    for i, decay in first_middle_last(PUBLISHED["weight_decay"][1]):
        numbers = hyper | dict(lr=jnp.float32(0.5), weight_decay=jnp.float32(9.0))
        found_update, _ = update.update(zero, update.init(params), params, hyper=numbers, step=jnp.int32(i))
        np.testing.assert_allclose(found_update["body"]["kernel"], -0.5 * decay * 3.0, rtol=1e-5)
        np.testing.assert_allclose(found_update["head"]["kernel"], -0.5 * decay * 5.0 * (i >= 10), rtol=1e-5)
