"""Check settings before training: reject contradictions, warn of settings that are probably unintended."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.schedules import NO_SCHEDULES, Schedules
from ssl_jax.training.settings import TrainingSettings

INITIAL_SHARE = 0.1  # warn above this share of the initial weights in the moving average at the end of training
SKIPPED_SHARE = 0.05  # warn above this share of updates skipped by `on_nonfinite` or `skip_outliers`
IGNORED = {  # settings that only some optimizers read
    "b1": ("adam", "adamw", "lion", "muon"),
    "b2": ("adam", "adamw", "lion", "muon"),
    "eps": ("adam", "adamw", "muon"),
    "momentum": ("sgd", "lars", "muon"),
    "nesterov": ("sgd",),
    "trust_coefficient": ("lars",),
    "matrix_lr": ("muon",),
}


def questionable_settings(
    training: TrainingSettings, optimizer: OptimizerSettings, *, schedules: Schedules = NO_SCHEDULES, batch_size: int,
    examples: int, tokens_per_example: int = 1, evaluates: bool = True,
) -> list[str]:  # fmt: skip
    """Return one line for each setting that has no effect or is probably unintended.

    Raise UserError for contradictions: a warm-up or cool-down longer than the run, a schedule that ends above its peak.
    Checks that need the length in steps are skipped for a budget in minutes.
    """
    found = _without_effect(optimizer)
    if batch_size > examples:
        found.append(
            f"data.batch_size={batch_size}: exceeds the {examples} training examples, so that every batch repeats some"
        )
    if training.evaluate_every is not None and not evaluates:
        found.append("training.evaluate_every has no effect: the config's `downstream` names no evaluator")
    if training.evaluators and training.evaluate_every is None:
        found.append("training.evaluators has no effect without training.evaluate_every")
    duration = configs.Duration.parse(training.duration, "training.duration")
    if duration.unit == "minute":
        return found
    size = dict(batch_size=batch_size, examples=examples, tokens_per_example=tokens_per_example)
    total = duration.steps(path="training.duration", **size)
    steps = lambda text, path: configs.Duration.parse(text, path).steps(path=path, total=total, **size)
    warmup, cooldown = steps(optimizer.warmup, "optimizer.warmup"), steps(optimizer.cooldown, "optimizer.cooldown")
    try:
        optimizer.check_lengths(peak=optimizer.peak(batch_size), total=total, warmup=warmup, cooldown=cooldown)
    except UserError as error:
        raise UserError(f"optimizer.{error}") from None
    if training.evaluate_every is not None and evaluates and steps(training.evaluate_every, "training.evaluate_every") > total:
        found.append(f"training.evaluate_every={training.evaluate_every!r} has no effect: the run has {total:,} steps")
    if schedules.ema is not None and training.ema is not None:
        found.append("training.ema has no effect: schedules.ema gives the decay")
    share = initial_share(training, schedules, total, steps)
    if share > INITIAL_SHARE:
        name = f"training.ema={training.ema}" if schedules.ema is None else "schedules.ema"
        found.append(
            f"{name}: after {total:,} steps the moving average, which is evaluated, is still {share:.1%} initial"
            f" weights; a decay below {0.01 ** (1 / total):.4g} leaves 1 %"
        )
    return found


def initial_share(training: TrainingSettings, schedules: Schedules, total: int, steps: Callable[[str, str], int]) -> float:
    """Return the share of the initial weights in the moving average after `total` steps; 0 without one.

    steps: (a duration, its key in the config) -> steps.
    """
    if schedules.ema is None:
        return 0.0 if training.ema is None else training.ema**total
    hyper = {"schedules": {"ema": schedules.ema.numbers(steps(schedules.ema.over, "schedules.ema.over"))}}
    decays = np.asarray(schedules.value("ema", hyper, np.arange(total)), np.float64)
    return float(np.exp(np.log(np.maximum(decays, 1e-300)).sum()))


def _without_effect(optimizer: OptimizerSettings) -> list[str]:
    found, plain = [], OptimizerSettings(lr=1.0)
    for name, readers in IGNORED.items():
        if getattr(optimizer, name) != getattr(plain, name) and optimizer.name not in readers:
            found.append(f"optimizer.{name} has no effect: optimizer.name={optimizer.name!r} does not read it")
    if optimizer.schedule == "constant":
        for name in ("min_lr", "final_fraction"):
            if getattr(optimizer, name):
                found.append(f'optimizer.{name} has no effect: optimizer.schedule="constant" ends at its peak')
    if optimizer.schedule != "warmup_stable_decay" and (optimizer.cooldown, optimizer.cooldown_shape) != ("20 %", "linear"):
        found.append(f"optimizer.cooldown has no effect: optimizer.schedule={optimizer.schedule!r} has no cool-down")
    return found


def skipped_updates(training: TrainingSettings, state: Any) -> list[str]:
    """Return a line if a trained State's guard skipped many updates."""
    skipped, steps = int(state.guard["skipped"]), int(state.step)
    if skipped <= SKIPPED_SHARE * steps:
        return []
    why = "not finite" if training.skip_outliers is None else "not finite or an outlier"
    return [
        f"{skipped:,} of {steps:,} updates were skipped, since the loss or the gradient was {why}; "
        "lower optimizer.lr or set optimizer.clip"
    ]
