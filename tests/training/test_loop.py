"""The loop: exactness of resuming, of several steps a call, of accumulation and of replicas."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training import program
from ssl_jax.training import state as states
from ssl_jax.training.checkpoint import complete_steps
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.loop import Trainer, train
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.rules import flatten
from ssl_jax.training.settings import CheckpointSettings, TrainingSettings
from tests.reliability.toys import ToyTask, toy_stream

TRAINING = TrainingSettings(duration="24 steps", log_every=5, ema=0.9, evaluate_every="7 steps", tensorboard=False)
OPTIMIZER = OptimizerSettings(lr=1e-2, weight_decay=0.05, warmup="10 %", clip=1.0)


def total(state):
    """An evaluation: a number that depends on every bit of the moving average."""
    return {"sum": float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(state.ema)))}


def settings(**changes):
    return dataclasses.replace(TRAINING, **changes)


def run(workdir=None, training=TRAINING, task=None, stream=None, **options):
    options = {"evaluate": total, "quiet": True, "seed": 0, **options}
    return train(task or ToyTask(), stream or toy_stream(), training=training, optimizer=OPTIMIZER, workdir=workdir, **options)


def same_bits(a, b):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for path in a:
        assert np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes(), f"{path} differs"


class Killed(BaseException):
    pass


def killed_at(step):
    def evaluate(state):
        if int(state.step) == step:
            raise Killed
        return total(state)

    return evaluate


@pytest.mark.parametrize("accumulation, many, placement", [(1, 1, "host"), (2, 1, "device"), (1, 4, "device")])
def test_resuming_is_exact(tmp_path, accumulation, many, placement):
    """Killed after step 14 and started again, a run ends bit-equal to its twin, and so does its metrics file.

    A failure here means that something outside the state (a clock, an iterator, a counter) has crept into the step.
    """
    training = settings(accumulation=accumulation, steps_per_call=many)
    options = dict(training=training, checkpoint=CheckpointSettings(every=5))
    twin = run(tmp_path / "twin", stream=toy_stream(placement=placement), **options)
    with pytest.raises(Killed):
        run(tmp_path / "killed", stream=toy_stream(placement=placement), **options | {"evaluate": killed_at(14)})
    resumed = run(tmp_path / "killed", stream=toy_stream(placement=placement), **options)
    same_bits(twin, resumed)
    lines = (tmp_path / "twin/metrics.jsonl").read_text()
    assert (tmp_path / "killed/metrics.jsonl").read_text() == lines
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [5, 7, 10, 14, 15, 20, 21, 24]


def test_a_run_that_is_complete_is_not_trained_again(tmp_path):
    first = run(tmp_path)
    same_bits(first, run(tmp_path))


@pytest.mark.parametrize(
    "settings, saved",
    [
        (dict(every=2, every_minutes=None), [2, 4, 5]),
        (dict(every_minutes=1e-9), [1, 2, 3, 4, 5]),
        (dict(every=2, every_minutes=60.0), [2, 4, 5]),
        (dict(every_minutes=None), [5]),
    ],
)
def test_checkpoints_are_saved_by_steps_and_by_minutes(tmp_path, settings, saved):
    run(tmp_path, total_steps=5, checkpoint=CheckpointSettings(keep=9, **settings))
    assert complete_steps(tmp_path / "checkpoints") == saved


def test_several_steps_a_call_change_no_bit(tmp_path):
    same_bits(run(), run(training=settings(steps_per_call=6)))


def trainer_of(**changes):
    return Trainer(ToyTask(), toy_stream(), training=settings(**changes), optimizer=OPTIMIZER)


def numbers(program, seed=0, total_steps=9, **given):
    return program.hyper(batch_size=12, seed=seed, total_steps=total_steps, warmup_steps=0, cooldown_steps=0, **given)


def test_runs_of_one_trainer_compile_once(monkeypatch):
    """The step is not traced and compiled again: a sweep over seeds would wait for it."""
    trainer = trainer_of()
    first = trainer.run(seed=0, total_steps=2, quiet=True)
    monkeypatch.setattr(trainer.program._programs, "_make", None)
    second = trainer.run(seed=1, total_steps=2, quiet=True)
    assert not np.array_equal(second.params["head"]["kernel"], first.params["head"]["kernel"])


def test_a_long_run_on_a_cpu_compiles_long_calls_only_and_a_short_one_single_steps(monkeypatch):
    monkeypatch.setattr(program, "SHORT_RUN", 8)
    for steps, counts in ((4, {1}), (8, {4}), (9, {1, 4})):
        trainer = trainer_of()
        trainer.run(seed=0, total_steps=steps, quiet=True)
        assert {key[0] for key in trainer.program._programs.futures} == counts


def test_what_fails_in_compilation_fails_in_the_run(monkeypatch):
    def failing(count, resident):
        raise UserError("out of memory")

    trainer = trainer_of()
    monkeypatch.setattr(trainer.program._programs, "_make", failing)
    for _ in range(2):
        with pytest.raises(UserError, match="out of memory"):
            trainer.run(seed=0, total_steps=3, quiet=True)


def test_device_placement_changes_no_bit():
    same_bits(run(), run(stream=toy_stream(placement="device")))


@pytest.mark.parametrize("accumulation", [2, 3, 12])
def test_accumulation_gives_the_whole_batchs_gradient(accumulation):
    """Weighted losses over microbatches of any size average to the whole batch's, to f32 rounding."""
    whole, split = run(total_steps=3), run(total_steps=3, training=settings(accumulation=accumulation))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_accumulated_metrics_are_the_whole_batchs():
    def metrics(accumulation):
        program = trainer_of(accumulation=accumulation).program
        batch = program.put(program.stream.host_batch(0), 1)
        return jax.device_get(program.compiled(1, {})(program.create(numbers(program)), batch, {})[1])

    whole, split = metrics(1), metrics(4)
    assert whole["weight"] == split["weight"] > 12
    for name in ("loss", "grad_norm", "update_norm", "norm/encoder/block00"):
        np.testing.assert_allclose(whole[name], split[name], rtol=1e-5)


def test_replicas_in_one_program_equal_single_runs():
    """vmap over a leading replica axis of the state, one batch for all: the same learning as K runs of their own."""
    program = trainer_of(ema=None).program
    hypers = [numbers(program, seed, 4, lr=lr) for seed, lr in ((0, 1e-2), (1, 1e-3), (2, 3e-2))]
    replicas = states.replicate(program.new_state, hypers)
    step = jax.jit(jax.vmap(program.step, in_axes=(0, None, None)))
    for number in range(4):
        replicas, metrics = step(replicas, program.stream.host_batch(number), {})
    assert metrics["loss"].shape == (3,)
    for i, hyper in enumerate(hypers):
        alone = program.create(hyper)
        for number in range(4):
            alone, _ = program.compiled(1, {})(alone, program.put(program.stream.host_batch(number), 1), {})
        for a, b in zip(jax.tree.leaves(replicas.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


def test_runs_share_the_compiled_step_and_leave_initial_parameters_alone():
    trainer = trainer_of(ema=None, evaluate_every=None)
    first = trainer.run(seed=0, total_steps=3, quiet=True)
    compiled = dict(trainer.program._programs.futures)
    other = trainer.run(
        seed=1, total_steps=5, quiet=True, stream=toy_stream(seed=5, size=48), init_params=first.params, lr=1e-3
    )
    assert trainer.program._programs.futures == compiled
    assert int(other.step) == 5 and float(other.hyper["lr"]) == np.float32(1e-3)
    assert np.isfinite(sum(float(jnp.sum(x)) for x in jax.tree.leaves(first.params))), "the caller's arrays were donated"
    same_bits(first, trainer.run(seed=0, total_steps=3, quiet=True))


def test_initial_parameters_may_be_a_function_of_the_tasks_own():
    double = lambda params: jax.tree.map(lambda x: 2 * x, params)
    state = run(init_params=double, total_steps=1, training=settings(duration="1 steps"))
    plain = run(total_steps=1)
    kernel = lambda s: s.params["encoder"]["patch_embedding"]["kernel"]
    np.testing.assert_allclose(kernel(state), 2 * kernel(plain), atol=0.05)

    def in_place(params):
        params["head"]["bias"] = np.full(1, 9.0, np.float32)
        return params

    assert run(init_params=in_place, total_steps=1).params["head"]["bias"] == pytest.approx(9.0, abs=0.1)
    with pytest.raises(UserError, match="head/bias is missing"):
        run(init_params=lambda p: {**p, "head": {"kernel": p["head"]["kernel"]}})
    with pytest.raises(UserError, match=r"head/bias has the shape \[3\], expected \[1\]"):
        run(init_params=lambda p: {**p, "head": {**p["head"], "bias": np.zeros(3)}})


def test_the_moving_average_follows_the_parameters():
    state, program = run(total_steps=1), trainer_of().program
    before = program.create(numbers(program, total_steps=1)).params
    want = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before, state.params)
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


# Divergence ---------------------------------------------------------------------------------------------------------------


def poisoned():
    """A stream and a task whose loss is not finite on one example, first met after a few steps; and the step of it."""
    stream = toy_stream()
    bad = int(stream.indices(6)[3])
    first = next(step for step in range(20) if bad in stream.indices(step))
    return ToyTask(poison=bad), stream, first + 1, bad


def test_a_non_finite_loss_stops_with_what_one_needs_to_know(tmp_path):
    task, stream, step, bad = poisoned()
    with pytest.raises(Diverged) as error:
        run(tmp_path, task=task, stream=stream, checkpoint=CheckpointSettings(every=2))
    text = str(error.value)
    assert f"step {step}: loss is not finite" in text and "gradient of encoder/block00" in text and "\n" not in text
    assert f"last good checkpoint: step {(step - 1) // 2 * 2}" in text
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert bad in report["indices"] and report["step"] == step and report["batch"] == step - 1


def test_skipping_leaves_the_parameters_and_counts(tmp_path):
    task, stream, step, bad = poisoned()
    state = run(tmp_path, task=task, stream=stream, training=settings(on_nonfinite="skip"))
    expected = sum(bad in stream.indices(s) for s in range(24))
    assert int(state.guard["skipped"]) == expected > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 24 and last["skipped"] >= 1 and np.isfinite(last["loss"])


def test_rewinding_passes_over_the_bad_batches(tmp_path):
    task, stream, step, bad = poisoned()
    training = settings(on_nonfinite="rewind", log_every=1)
    state = run(tmp_path, task=task, stream=stream, training=training, checkpoint=CheckpointSettings(every=3))
    assert int(state.step) == 24 and int(state.hyper["data_offset"]) >= 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25)) and lines[-1]["rewinds"] >= 1


def test_outliers_of_the_gradient_norm_are_skipped():
    """After 128 ordinary steps, one example's label a thousand times too large."""
    stream = toy_stream()
    bad = int(stream.indices(140)[0])
    steps = [s for s in range(150) if bad in stream.indices(s)]
    stream.dataset.arrays["y"] = stream.dataset.arrays["y"].copy()
    original = stream.host_batch

    def host_batch(step, rows=slice(None)):
        batch = original(step, rows)
        if step == 140:
            batch["y"] = np.where(batch["index"] == bad, 1e4, batch["y"])
        return batch

    stream.host_batch = host_batch
    training = settings(skip_outliers=6.0, evaluate_every=None)
    assert 140 in steps
    state = run(stream=stream, training=training, total_steps=150)
    assert int(state.guard["skipped"]) == 1


# Length -------------------------------------------------------------------------------------------------------------------


def test_a_budget_in_minutes_fixes_the_steps_once(tmp_path):
    training = settings(duration="0.01 minutes", evaluate_every=None)
    state = run(tmp_path, training=training)
    steps = int(state.hyper["total_steps"])
    assert int(state.step) == steps > 5
    again = run(tmp_path, training=training)
    assert int(again.hyper["total_steps"]) == steps


@pytest.mark.parametrize("duration, steps", [("2 epochs", 16), ("17 steps", 17), ("120 examples", 10)])
def test_durations(duration, steps):
    assert int(run(training=settings(duration=duration, evaluate_every=None)).step) == steps


def test_shapes_that_do_not_fit_are_user_errors():
    with pytest.raises(UserError, match="accumulation=5: must divide"):
        run(training=settings(accumulation=5))
    with pytest.raises(UserError, match="less than one step"):
        run(training=settings(duration="3 examples"))


@pytest.mark.parametrize(
    "bad",
    [
        dict(duration="3"), dict(accumulation=0), dict(dtype="float16"), dict(ema=1.0), dict(steps_per_call=0),
        dict(steps_per_call="many"), dict(log_every=0), dict(on_nonfinite="ignore"), dict(skip_outliers=-1.0),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(bad):
    with pytest.raises(UserError) as error:
        settings(**bad)
    assert next(iter(bad)) in str(error.value) and "\n" not in str(error.value)
