"""Contradictions are refused before training; what is only odd is one line."""

import types

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training.checks import initial_share, questionable_settings, skipped_updates
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.schedules import Schedule, Schedules
from ssl_jax.training.settings import TrainingSettings


def found(training=None, optimizer=None, **options):
    options = dict(batch_size=10, examples=100, evaluates=True) | options
    settings = TrainingSettings(**{"duration": "40 steps", **(training or {})})
    return questionable_settings(settings, OptimizerSettings(**{"lr": 1e-3, **(optimizer or {})}), **options)


def test_a_sound_config_gives_no_line():
    assert found() == []
    assert found(dict(ema=0.9, evaluate_every="20 steps", evaluators=("knn",)), dict(warmup="10 %", min_lr=1e-6)) == []
    muon = dict(name="muon", matrix_lr=0.1, momentum=0.9, b1=0.9, eps=1e-6, schedule="warmup_stable_decay", cooldown="70 %")
    assert found({}, muon) == []


@pytest.mark.parametrize(
    "optimizer, message",
    [
        (dict(warmup="41 steps"), "optimizer.warmup='41 steps': 41 steps are longer than the run, 40 steps"),
        (dict(warmup="110 %"), "optimizer.warmup='110 %': 44 steps are longer than the run"),
        (dict(warmup="5 epochs"), "optimizer.warmup='5 epochs': 50 steps are longer than the run"),
        (dict(warmup="30 steps", schedule="warmup_stable_decay", cooldown="11 steps"), "optimizer.cooldown='11 steps'"),
        (dict(warmup="50 %", schedule="warmup_stable_decay", cooldown="60 %"), "optimizer.cooldown='60 %'"),
        (
            dict(lr=None, base_lr=1e-3, min_lr=1e-4),
            "optimizer.min_lr=0.0001: the schedule would end above its peak, 3.90625e-05",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(optimizer, message):
    with pytest.raises(UserError) as error:
        found({}, optimizer)
    assert str(error.value).startswith(message)


def test_the_longest_schedule_that_fits_is_accepted():
    assert found({}, dict(warmup="40 steps")) == []
    assert found({}, dict(warmup="30 steps", schedule="warmup_stable_decay", cooldown="10 steps")) == []


@pytest.mark.parametrize("values", [dict(lr=1e-3, min_lr=1e-2), dict(lr=1e-3, min_lr=1e-4, final_fraction=0.1)])
def test_two_ends_or_an_end_above_the_peak_are_refused_when_read(values):
    with pytest.raises(UserError, match="^min_lr"):
        OptimizerSettings(**values)


@pytest.mark.parametrize(
    "training, optimizer, options, message",
    [
        (dict(ema=0.9999), {}, {}, "training.ema=0.9999: after 40 steps the moving average, which is evaluated, is"
                                   " still 99.6% initial weights; a decay below 0.8913 leaves 1 %"),
        (dict(ema=0.99, duration="4 epochs"), {}, {}, "66.9% initial weights"),
        ({}, {}, dict(schedules=Schedules(ema=Schedule(0.99, 1.0))), "schedules.ema: after 40 steps the moving average"),
        (dict(ema=0.5), {}, dict(schedules=Schedules(ema=Schedule(0.5, 0.9))), "training.ema has no effect: schedules.ema"),
        ({}, {}, dict(batch_size=128), "data.batch_size=128: exceeds the 100 training examples"),
        (dict(evaluate_every="50 steps"), {}, {}, "training.evaluate_every='50 steps' has no effect: the run has 40 steps"),
        (dict(evaluate_every="50 %"), {}, dict(evaluates=False), "training.evaluate_every has no effect"),
        (dict(evaluators=("knn",)), {}, {}, "training.evaluators has no effect"),
        ({}, dict(name="sgd", b2=0.95), {}, "optimizer.b2 has no effect: optimizer.name='sgd' does not read it"),
        ({}, dict(momentum=0.5), {}, "optimizer.momentum has no effect: optimizer.name='adamw' does not read it"),
        ({}, dict(schedule="constant", min_lr=1e-5), {}, "optimizer.min_lr has no effect"),
        ({}, dict(cooldown="30 %"), {}, "optimizer.cooldown has no effect: optimizer.schedule='warmup_cosine' has no"),
    ],
)  # fmt: skip
def test_what_is_odd_is_one_line(training, optimizer, options, message):
    (line,) = found(training, optimizer, **options)
    assert message in line and "\n" not in line


def test_a_budget_in_minutes_has_no_length_to_check():
    assert found(dict(duration="5 minutes", ema=0.9999), dict(warmup="10_000 steps")) == []


def test_the_share_of_initial_weights_is_the_product_of_the_decays():
    steps = lambda text, path: {"100 %": 5, "3 steps": 3}[text]
    share = lambda schedule: initial_share(TrainingSettings(), Schedules(ema=schedule), 5, steps)
    assert share(Schedule(0.5, 1.0, "linear")) == pytest.approx(0.5 * 0.6 * 0.7 * 0.8 * 0.9, rel=1e-5)
    assert share(Schedule(0.5, 0.8, "step", "3 steps")) == pytest.approx(0.5**3 * 0.8**2, rel=1e-5)
    assert share(Schedule(0.0, 1.0, "linear")) < 1e-200 and initial_share(TrainingSettings(), Schedules(), 5, steps) == 0


@pytest.mark.parametrize("skipped, steps, lines", [(0, 40, 0), (2, 40, 0), (3, 40, 1), (39, 40, 1)])
def test_many_skipped_updates_are_reported(skipped, steps, lines):
    state = types.SimpleNamespace(guard={"skipped": np.int32(skipped)}, step=np.int32(steps))
    shown = skipped_updates(TrainingSettings(on_nonfinite="skip"), state)
    assert len(shown) == lines and all(f"{skipped} of {steps} updates were skipped" in line for line in shown)
