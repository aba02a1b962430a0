"""The complete state of a run as one pytree."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ssl_jax import randomness
from ssl_jax.task import Params, Task
from ssl_jax.training.optimizer import OptimizerSettings


@flax.struct.dataclass
class State:
    """The state after `step` updates. A leading replica axis on every leaf is legal.

    hyper: numbers that may differ between replicas: lr (the peak), weight_decay, seed, the schedule's lengths total_steps,
    warmup_steps, cooldown_steps, the config's `schedules`, the task's own `numbers`; data_offset is added to `step` to
    give the batch's number (it grows when a run rewinds past bad batches). guard: counts of skipped updates and the
    running moments of the gradient's norm.
    """

    step: Any  # i32[], completed updates
    params: Any
    opt_state: Any
    ema: Any  # the parameters' moving average (the task's teacher), or None
    hyper: Any
    guard: Any
    variables: Any = flax.struct.field(default_factory=dict)  # the task's own state (Task.variables)

    @property
    def evaluated(self) -> Params:
        """Return the parameters that evaluators use by default: the moving average if there is one."""
        return self.params if self.ema is None else self.ema


def hyper(
    settings: OptimizerSettings,
    *,
    batch_size: int,
    seed: int,
    total_steps: int,
    warmup_steps: int,
    cooldown_steps: int,
    lr: float | None = None,
    weight_decay: float | None = None,
    schedules: Mapping[str, Mapping[str, Any]] | None = None,
    numbers: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the hyper-parameters of one run as arrays."""
    return {
        "lr": np.float32(settings.peak(batch_size) if lr is None else lr),
        "weight_decay": np.float32(settings.weight_decay if weight_decay is None else weight_decay),
        "seed": np.int32(seed),
        "total_steps": np.int32(total_steps),
        "warmup_steps": np.int32(warmup_steps),
        "cooldown_steps": np.int32(cooldown_steps),
        "data_offset": np.int32(0),
        "schedules": {name: dict(value) for name, value in (schedules or {}).items()},
        "numbers": {name: np.float32(value) for name, value in (numbers or {}).items()},
    }


def init_params(task: Task, seed: int | Array, batch: Mapping[str, Any]) -> Params:
    """Return the task's initial parameters from the stream "init", in f32; `batch` gives shapes only."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
    return task.init(randomness.stream(seed, "init"), zeros)


def new_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    hyper: Mapping[str, Any],
    params: Params,
    variables: Mapping[str, Any] | None,
    ema: bool,
) -> State:
    """Return the state at step 0; `variables` default to the task's own."""
    guard = {
        "skipped": jnp.zeros((), jnp.int32),
        "seen": jnp.zeros((), jnp.int32),
        "mean": jnp.zeros((), jnp.float32),
        "square": jnp.zeros((), jnp.float32),
    }
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        hyper=jax.tree.map(jnp.asarray, hyper),
        guard=guard,
        variables=task.variables(params) if variables is None else variables,
    )


def replicate(state: Callable[[dict], State], hypers: list[dict]) -> State:
    """Return K states with a leading replica axis, one for each set of hyper-parameters."""
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *hypers)
    return jax.vmap(state)(stacked)
