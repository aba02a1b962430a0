"""checkpoint.best, training.patience and a run that is made longer."""

import dataclasses
import json
import math
import threading
import time

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training.checkpoint import Checkpoints, complete_steps, read_extra
from ssl_jax.training.loop import train
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.prefetch import Prefetch
from ssl_jax.training.rules import flatten
from ssl_jax.training.selection import Selection, best_step
from ssl_jax.training.settings import CheckpointSettings, TrainingSettings
from tests.reliability.toys import ToyTask, toy_stream

BEST = CheckpointSettings(keep=1, every_minutes=None, best="probe/accuracy")
TRAINING = TrainingSettings(duration="12 steps", log_every=4, evaluate_every="2 steps", tensorboard=False)


def run(workdir, scores, checkpoint=BEST, optimizer=None, **changes):
    """A run whose evaluation after a step gives scores[step]."""
    evaluate = lambda state: {"probe/accuracy": scores[int(state.step)]}
    optimizer = OptimizerSettings(**(optimizer or dict(lr=1e-2)))
    return train(ToyTask(), toy_stream(), training=dataclasses.replace(TRAINING, **changes), optimizer=optimizer, seed=0,
                 workdir=workdir, checkpoint=checkpoint, evaluate=evaluate, quiet=True)  # fmt: skip


@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
def test_the_step_that_scored_best_is_saved_and_stays(tmp_path, mode, sign):
    """Nothing else asks for a checkpoint of step 4."""
    scores = {2: 0.5, 4: 0.9, 6: 0.9, 8: math.nan, 10: math.inf * sign, 12: 0.6}
    run(tmp_path, {step: sign * value for step, value in scores.items()}, dataclasses.replace(BEST, mode=mode))
    assert complete_steps(tmp_path / "checkpoints") == [4, 12]
    selection = read_extra(tmp_path / "checkpoints", 12)["selection"]
    assert (selection["step"], selection["value"], selection["without"]) == (4, 0.9 * sign, 4)


def test_a_checkpoint_between_two_evaluations_has_no_score_of_its_own(tmp_path):
    """Each checkpoint holds the last evaluation, which may be of an earlier step."""
    checkpoints, extra = Checkpoints(tmp_path, BEST), {}
    for step in range(10, 70, 10):
        if step in (20, 40, 60):
            extra = {"evaluated": step, "evaluation": {"probe/accuracy": {20: 0.9, 40: 0.5, 60: 0.6}[step]}}
        checkpoints.save(step, {"params": {"w": np.full(3, step, np.float32)}}, extra)
    checkpoints.close()
    assert checkpoints.steps() == [20, 60]
    extras = {30: {"evaluated": 20, "evaluation": {"a": 1.0}}, 40: {"evaluated": 40, "evaluation": {"a": 0.1}}, 50: {}}
    assert best_step(extras, "a", "max") == 40 and best_step(extras, "b", "max") is None


@pytest.mark.parametrize("patience, end", [(1, 6), (2, 8), (3, 12), (None, 12)])
def test_patience_ends_a_run_that_gets_no_better(tmp_path, patience, end):
    state = run(tmp_path, {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.2, 10: 0.6, 12: 0.6}, patience=patience)
    assert int(state.step) == end and complete_steps(tmp_path / "checkpoints")[-1] == end
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == end


def test_a_stopped_run_stays_stopped_and_goes_on_with_more_patience(tmp_path):
    scores = {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.2, 10: 0.6, 12: 0.6}
    assert int(run(tmp_path, scores, patience=2).step) == 8
    assert int(run(tmp_path, scores, patience=2).step) == 8
    longer = run(tmp_path, scores, patience=3)
    twin = run(tmp_path / "twin", scores, patience=3)
    assert int(longer.step) == 12
    for path, value in flatten(twin.params).items():
        np.testing.assert_array_equal(value, flatten(longer.params)[path])
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "twin/metrics.jsonl").read_text()


def test_a_result_that_the_evaluation_does_not_have_is_named():
    with pytest.raises(UserError, match="checkpoint.best='probe/acuracy': .* did you mean probe/accuracy?"):
        Selection("probe/acuracy").update(3, {"probe/accuracy": 0.5})


def test_another_metric_begins_a_history_of_its_own():
    stored = {"selection": dict(metric="a", mode="max", value=0.9, step=4, without=2)}
    of = lambda **changes: Selection.of(CheckpointSettings(**changes), TrainingSettings(), stored)
    assert of(best="a").step == 4 and of(best="b").step is None and of(best="a", mode="min").value is None


# A longer run -----------------------------------------------------------------------------------------------------------

WSD = dict(lr=1e-2, schedule="warmup_stable_decay", warmup="2 steps", cooldown="4 steps")
NONE = CheckpointSettings(every=8, every_minutes=None, keep=9)


@pytest.mark.parametrize("optimizer", [dict(lr=1e-2, schedule="constant", warmup="2 steps"), WSD])
def test_a_longer_run_is_the_one_that_was_planned_longer(tmp_path, optimizer):
    """Of a schedule that decays, the run is continued from before the decay."""
    scores = dict.fromkeys(range(99), 0.0)
    run(tmp_path / "a", scores, NONE, optimizer)
    if optimizer is WSD:
        for file in sorted((tmp_path / "a/checkpoints/00000012").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (tmp_path / "a/checkpoints/00000012").rmdir()
    longer = run(tmp_path / "a", scores, NONE, optimizer, duration="16 steps")
    twin = run(tmp_path / "b", scores, NONE, optimizer, duration="16 steps")
    assert int(longer.step) == int(longer.hyper["total_steps"]) == 16
    for path, value in flatten(twin.params).items():
        np.testing.assert_array_equal(value, flatten(longer.params)[path])


@pytest.mark.parametrize(
    "optimizer, duration, message",
    [
        (dict(lr=1e-2), "16 steps", "a run of 12 steps with this schedule cannot become one of 16"),
        (dict(lr=1e-2, schedule="constant", warmup="50 %"), "16 steps", "the warm-up was 6 steps; give it in steps"),
        (dict(lr=1e-2, schedule="constant"), "10 steps", "12 steps are already done, more than 10"),
        (WSD, "16 steps", "the rate decays from step 8 on, but 12 are done"),
    ],
)
def test_another_length_that_would_change_the_past_is_refused(tmp_path, optimizer, duration, message):
    scores = dict.fromkeys(range(99), 0.0)
    run(tmp_path, scores, NONE, optimizer)
    with pytest.raises(UserError, match=message):
        run(tmp_path, scores, NONE, optimizer, duration=duration)


# Slow readers -----------------------------------------------------------------------------------------------------------


def test_a_slow_batch_can_be_waited_for_in_parts():
    ready = threading.Event()

    def batches():
        yield {"x": np.zeros(1)}
        ready.wait(10)
        yield {"x": np.ones(1)}

    found = Prefetch(batches(), iter([1, 1]), lambda batch, count: batch)
    assert found.is_ready() and found.is_ready() and next(found)["x"][0] == 0
    started = time.monotonic()
    assert not found.is_ready(seconds=0.05)
    ready.set()
    assert next(found)["x"][0] == 1 and 0.04 < found.last_wait <= time.monotonic() - started
    with pytest.raises(StopIteration):
        next(found)
    found.close()
