"""Loss and gradients of one batch under a config's mesh and accumulation, for the tests that compare ways to cut it."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import randomness, runs


def gradients(config: dict, mesh: dict[str, int], accumulation: int, batch_size: int) -> tuple[Any, Any, float, dict, Any]:
    """Return (program, state, loss, metrics, gradients) of one batch, as a run's step computes them."""
    training = {**config["training"], "accumulation": accumulation}
    data = {**config["data"], "batch_size": batch_size, "placement": "host"}
    parts = runs.prepare(ConfigDict({**config, "mesh": mesh, "training": training, "data": data}))
    program = runs.trainer_of(parts).program
    state = program.create(program.hyper(batch_size=batch_size, seed=0, total_steps=10, warmup_steps=0, cooldown_steps=0))
    if program.task.scheduled() or jax.tree.leaves(state.variables):
        state = state.replace(step=state.step + 3)

    def value(state, raw):
        key = randomness.stream(1, "task", 3)
        batch = dict(program.task.prepare(parts.stream.on_device({}, raw, randomness.stream(1, "augment", 3)), key, train=True))
        return program.step.gradients(state.params, batch, key, program.step.context(state))

    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        loss, metrics, grads = jax.jit(value)(state, program.put(parts.stream.host_batch(3), 1))
    metrics = {name: np.asarray(x, np.float64) for name, x in metrics.items() if name != "loss"}
    return program, state, float(loss), metrics, jax.device_get(grads)


def distance(a: dict, b: dict) -> float:
    """Return the relative L2 distance of two flat trees as wholes."""
    apart, size = (sum(np.sum((a[k] - x[k]) ** 2.0) for k in a) for x in (b, jax.tree.map(np.zeros_like, b)))
    return float(np.sqrt(apart / max(size, 1e-30)))
