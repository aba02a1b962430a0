"""Schedules as functions of traced numbers, so that one program serves any length of a run.

There are two kinds: the learning rate's, a multiplier of its peak, and those of the config's section `schedules`, each a
number that goes from `start` to `end`. `step` counts completed updates: the first update uses step 0.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ssl_jax import config as configs
from ssl_jax.errors import UserError

Number = Num[Array, ""] | float | int


def warmup_factor(step: Number, warmup: Number, offset: int = 0, start: float = 0.0) -> Float[Array, ""]:
    """Return start + (1 - start) (step + offset) / (warmup + offset); without an offset, exactly `start` at step 0.

    offset=1 is nanoGPT's lr * (it + 1) / (warmup_iters + 1).
    """
    fraction = (jnp.float32(step) + offset) / jnp.maximum(jnp.float32(warmup) + offset, 1)
    return start + (1 - start) * fraction


def _progress(step: Number, warmup: Number, total: Number) -> Float[Array, ""]:
    """Return the progress after warm-up: 0 at its end, 1 at the end of training."""
    span = jnp.maximum(jnp.float32(total) - jnp.float32(warmup), 1)
    return jnp.clip((jnp.float32(step) - jnp.float32(warmup)) / span, 0, 1)


def _half_cosine(x: Float[Array, "*steps"]) -> Float[Array, "*steps"]:
    return 0.5 * (1 + jnp.cos(jnp.pi * x))


def cosine(step, total, warmup, cooldown, final):
    """Return half a cosine from 1 to `final` after warm-up (MAE's util/lr_sched.py)."""
    return final + (1 - final) * _half_cosine(_progress(step, warmup, total))


def linear(step, total, warmup, cooldown, final):
    """Return a straight line from 1 to `final` after warm-up (BERT)."""
    return 1 - (1 - final) * _progress(step, warmup, total)


def constant(step, total, warmup, cooldown, final):
    return jnp.ones((), jnp.float32)


def _left(step, total, cooldown):
    """Return 1 before the last `cooldown` steps, then a linear decrease to 0 at `total`."""
    return jnp.clip((jnp.float32(total) - jnp.float32(step)) / jnp.maximum(jnp.float32(cooldown), 1), 0, 1)


def stable_linear(step, total, warmup, cooldown, final):
    """Return 1, then a straight line to `final` over the last `cooldown` steps."""
    return final + (1 - final) * _left(step, total, cooldown)


def stable_sqrt(step, total, warmup, cooldown, final):
    """Return 1, then 1 - sqrt(x) over the last `cooldown` steps (Hagele et al. 2024, equation 1)."""
    return final + (1 - final) * (1 - jnp.sqrt(1 - _left(step, total, cooldown)))


def whole_cosine(step, total, warmup, cooldown, final):
    """Return half a cosine over all of training, including warm-up."""
    return final + (1 - final) * _half_cosine(_progress(step, 0, total))


SHAPES: dict[str, Callable] = {
    "cosine": cosine,
    "warmup_cosine": cosine,
    "linear": linear,
    "warmup_linear": linear,
    "constant": constant,
    "warmup_stable_decay": stable_linear,
    "warmup_min_cosine": whole_cosine,
}


def multiplier(
    name: str,
    step: Int[Array, ""] | int,
    *,
    total: Number,
    warmup: Number = 0,
    cooldown: Number = 0,
    final: Number = 0.0,
    offset: int = 0,
    start: float = 0.0,
    shape: str = "linear",
) -> Float[Array, ""]:
    """Return the factor on the peak learning rate at `step`.

    name: a key of SHAPES. "warmup_min_cosine" is min(linear warm-up, half a cosine over all of training)
    (IcarusWizard/MAE); the others rise by `warmup_factor` for `warmup` steps and then follow their curve.
    """
    curve = stable_sqrt if name == "warmup_stable_decay" and shape == "sqrt" else SHAPES[name]
    rising, falling = warmup_factor(step, warmup, offset, start), curve(step, total, warmup, cooldown, jnp.float32(final))
    if name == "warmup_min_cosine":
        return jnp.where(jnp.float32(warmup) > 0, jnp.minimum(rising, falling), falling)
    return jnp.where(jnp.float32(step) < jnp.float32(warmup), rising, falling)


# The config's section `schedules` ---------------------------------------------------------------------------------------

CURVES: dict[str, Callable] = {  # from 1 to 0 as the progress x goes from 0 to 1
    "cosine": _half_cosine,
    "linear": lambda x: 1 - x,
    "step": lambda x: jnp.where(x < 1, 1.0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` along `shape` over a duration, and then stays at `end`."""

    start: float
    end: float
    shape: str = "cosine"  # "cosine", "linear" or "step" (start, then end)
    over: str = "100 %"  # a duration: "30 epochs", "1000 steps", "10 %"

    def __post_init__(self):
        if self.shape not in CURVES:
            raise UserError(f"shape={self.shape!r}: must be one of {', '.join(CURVES)}")
        configs.Duration.parse(self.over, "over")

    def numbers(self, steps: int) -> dict[str, np.generic]:
        """Return the schedule as numbers of State.hyper, `over` resolved into steps."""
        return {"start": np.float32(self.start), "end": np.float32(self.end), "steps": np.int32(steps)}


@dataclasses.dataclass(frozen=True)
class Schedules:
    """The config's `schedules` of the teacher's decay, weight decay, learning rates by rule, and a task's own numbers.

    ema: the moving average's decay. weight_decay: replaces the optimizer's. lr: ((regular expression over parameter
    paths, Schedule), ...), multipliers of the learning rate; the first match counts. task: name -> Schedule.
    """

    ema: Schedule | None = None
    weight_decay: Schedule | None = None
    lr: tuple[tuple[str, Schedule], ...] = ()
    task: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, section: Any, known: Mapping[str, float]) -> "Schedules":
        """Read the section; `known` names the task's own numbers (`Task.scheduled`)."""
        section = dict(section or {})
        rules = section.pop("lr", None) or ()
        if not isinstance(rules, list | tuple) or not all(isinstance(rule, list | tuple) and len(rule) == 2 for rule in rules):
            raise UserError("schedules.lr: write ((regular expression, dict(start=..., end=..., shape=..., over=...)), ...)")
        found = {}
        for name, value in section.items():
            if name not in ("ema", "weight_decay", *known):
                raise UserError(f"schedules.{name}: unknown{configs.nearest(name, ('ema', 'lr', 'weight_decay', *known))}")
            if value is not None and value is not False:  # switched off
                found[name] = configs.read(Schedule, value, f"schedules.{name}")
        lr = tuple((rule[0], configs.read(Schedule, rule[1], f"schedules.lr[{i}]")) for i, rule in enumerate(rules))
        ema, decay = found.pop("ema", None), found.pop("weight_decay", None)
        if ema is not None and not (0 <= ema.start <= 1 and 0 <= ema.end <= 1):
            raise UserError(f"schedules.ema={ema.start, ema.end}: start and end must lie in [0, 1]")
        return cls(ema, decay, lr, found)

    def by_name(self) -> dict[str, Schedule]:
        """Return every schedule under its key in State.hyper["schedules"]."""
        named = {"ema": self.ema, "weight_decay": self.weight_decay} | {f"lr/{i}": rule[1] for i, rule in enumerate(self.lr)}
        named |= {f"task/{name}": schedule for name, schedule in self.task.items()}
        return {name: schedule for name, schedule in named.items() if schedule is not None}

    def value(self, name: str, hyper: Mapping[str, Any], step: Int[Array | np.ndarray, "..."] | int) -> Float[Array, "..."]:
        """Return the schedule `name` at `step`."""
        numbers, curve = hyper["schedules"][name], CURVES[self.by_name()[name].shape]
        progress = jnp.clip(jnp.float32(step) / jnp.maximum(jnp.float32(numbers["steps"]), 1), 0, 1)
        return numbers["end"] + (numbers["start"] - numbers["end"]) * curve(progress)


NO_SCHEDULES = Schedules()
