"""One training step: gradients of a task's loss, accumulated, guarded and applied. Pure; `jax.vmap` over the state is legal."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ssl_jax import randomness
from ssl_jax.cpu import apart
from ssl_jax.task import Batch, Task
from ssl_jax.training import rules
from ssl_jax.training.optimizer import OptimizerSettings, learning_rate, multipliers
from ssl_jax.training.state import State

OUTLIER_MEMORY = 128  # steps over which the gradient norm's mean and variance are taken


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: jax.jit wants a hash
class TrainStep:
    """state, raw batch, resident arrays -> (state, metrics f32[n]).

    `names`, filled when the step is traced, tells what the metrics are; those that start with "norm/" are the gradient
    norms of parameter groups, for finding where a run diverged.
    """

    task: Task
    on_device: Callable[[Any, Batch, Array], Batch]
    optimizer: optax.GradientTransformationExtraArgs
    settings: OptimizerSettings
    accumulation: int = 1
    ema: float | None = None
    guard: bool = False  # leave the state as it was when the loss or a gradient is not finite
    outliers: float | None = None
    cores: Mesh | None = None  # a CPU's cores, each of which takes the gradients of its own rows
    names: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, state: State, raw: Batch, resident: Any) -> tuple[State, Float[Array, "metrics"]]:
        seed, data_step = state.hyper["seed"], state.step + state.hyper["data_offset"]
        batch = self.on_device(resident, raw, randomness.stream(seed, "augment", data_step))
        bad = {"bad_examples": jnp.sum(batch.pop("bad"))} if "bad" in batch else {}  # skipped; others stand in their place
        loss, metrics, grads = self.gradients(state.params, batch, randomness.stream(seed, "task", data_step))
        groups = group_norms(grads)
        norm = jnp.sqrt(sum(jnp.square(g) for g in groups.values()))
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params, hyper=state.hyper, step=state.step)
        params, update_norm = applied(state.params, updates)
        params = self.task.after_update(params, state.step + 1)
        ema = state.ema
        if self.ema is not None:
            ema = jax.tree.map(lambda e, p: self.ema * e + (1 - self.ema) * p, state.ema, params)
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        new, guarded = self.guarded(state, new, loss, norm)
        metrics = {"loss": loss, **{k: v for k, v in metrics.items() if k != "loss"}}
        metrics |= {
            "lr": learning_rate(self.settings, state.hyper, state.step),
            "grad_norm": norm,
            "update_norm": update_norm,
            "param_norm": optax.global_norm(params),
            **guarded,
            **bad,
            **{f"norm/{name}": value for name, value in groups.items()},
        }
        self.names[:] = metrics
        return new, jnp.stack([jnp.asarray(v, jnp.float32) for v in metrics.values()])

    def gradients(self, params: Any, batch: Batch, key: Array) -> tuple[Array, dict[str, Array], Any]:
        """Loss, metrics and gradients of the whole batch.

        Each microbatch, and with `cores` each core's rows, weighs by its metric "weight".
        """
        frozen = multipliers(self.settings, params).frozen
        n = 1 if self.task.whole_batch else self.accumulation

        def loss(params, batch, key):
            kept = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
            return self.task.loss(kept, batch, key, train=True)

        gradient = jax.value_and_grad(loss, has_aux=True)
        if n == 1 and self.cores is None:
            (value, metrics), grads = gradient(params, batch, key)
            return value, metrics, grads

        weighs = False  # whether the task tells a weight, known once its loss is traced

        def weighted(params, batch, key):
            nonlocal weighs
            (value, metrics), grads = gradient(params, batch, key)
            weighs = "weight" in metrics
            weight = metrics.get("weight", jnp.ones(()))
            sums = {"loss": value, **{k: v for k, v in metrics.items() if k != "weight"}}
            return jax.tree.map(lambda x: x * weight, (sums, grads)), weight

        def accumulated(params, batch, key):
            # Rows m, m + n, m + 2n ... form microbatch m: each device then keeps its own rows.
            split = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
            micro = jax.tree.map(split, dict(batch))
            shapes = jax.eval_shape(weighted, params, jax.tree.map(lambda x: x[0], micro), key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            add = lambda total, rows: (jax.tree.map(jnp.add, total, weighted(params, rows, key)), None)
            return jax.lax.scan(add, zeros, micro)[0]

        sums_of = weighted if n == 1 else accumulated
        if self.cores is not None:
            sums_of = over_cores(sums_of, self.cores)
        (sums, grads), weight = sums_of(params, dict(batch), key)
        metrics, grads = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), (sums, grads))
        value = metrics.pop("loss")
        return value, metrics | ({"weight": weight} if weighs else {}), grads

    def guarded(self, old: State, new: State, loss: Array, norm: Array) -> tuple[State, dict[str, Array]]:
        """Keep the old parameters where this step must not count; the step number and the hyper-parameters go on."""
        if not self.guard and self.outliers is None:
            return new, {}
        guard, skip = dict(old.guard), jnp.zeros((), bool)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if self.guard:
            skip |= ~finite
        if self.outliers is not None:
            deviation = jnp.sqrt(jnp.maximum(guard["square"] - guard["mean"] ** 2, 0))
            skip |= (guard["seen"] >= OUTLIER_MEMORY) & (norm > guard["mean"] + self.outliers * deviation)
            seen = guard["seen"] + 1
            rate = 1 / jnp.minimum(seen, OUTLIER_MEMORY).astype(jnp.float32)
            moved = {
                "seen": seen,
                "mean": guard["mean"] + rate * (norm - guard["mean"]),
                "square": guard["square"] + rate * (norm**2 - guard["square"]),
            }
            guard |= {name: jnp.where(skip | ~finite, guard[name], value) for name, value in moved.items()}
        guard["skipped"] = guard["skipped"] + skip
        keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(skip, x, y), a, b)
        new = new.replace(
            params=keep(old.params, new.params), opt_state=keep(old.opt_state, new.opt_state),
            ema=keep(old.ema, new.ema), guard=guard,
        )  # fmt: skip
        return new, {"skipped": guard["skipped"]}


@apart
def applied(params: Any, updates: Any) -> tuple[Any, Float[Array, ""]]:
    """The parameters after the updates, and the updates' norm.

    Apart, since the updates have two readers here, for each of which XLA's CPU compiler would otherwise compute them again from
    the old parameters, and so keep a copy of all of those.
    """
    return optax.apply_updates(params, updates), optax.global_norm(updates)


def over_cores(sums: Callable, cores: Mesh) -> Callable:
    """`sums(params, batch, key)` of each core's rows, added up over the cores.

    They are added as one vector: XLA's CPU runtime makes all cores wait for each other once an array.
    """

    def local(params, batch, key):
        flat, unravel = ravel_pytree(sums(params, batch, key))
        return unravel(jax.lax.psum(flat, cores.axis_names))

    return jax.shard_map(local, mesh=cores, in_specs=(P(), P(cores.axis_names), P()), out_specs=P(), check_vma=False)


def group_norms(grads: Any) -> dict[str, Float[Array, ""]]:
    """The gradient's norm of every parameter group: a block, or a top-level module outside the blocks."""
    squares: dict[str, list] = {}
    for path, grad in rules.flatten(grads).items():
        squares.setdefault(group_of(path), []).append(jnp.sum(jnp.square(grad.astype(jnp.float32))))
    return {name: jnp.sqrt(sum(values)) for name, values in squares.items()}


def group_of(path: str) -> str:
    """ "encoder/block03/mlp/up/kernel" -> "encoder/block03"; "encoder/norm/scale" -> "encoder/norm"."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if part.startswith("block"):
            return "/".join(parts[: i + 1])
    return "/".join(parts[: max(len(parts) - 1, 1)][:2])


def several(step: Callable, count: int) -> Callable:
    """`count` steps in one program, over batches with a leading axis of steps; metrics f32[count, n]."""

    def steps(state: State, raw: Batch, resident: Any):
        return jax.lax.scan(lambda s, b: step(s, b, resident), state, raw, length=count)

    return steps


def nonfinite(names: list[str], values: np.ndarray) -> tuple[str, str] | None:
    """(first metric, first parameter group) that is not finite, or None; the group is "" where all gradients are finite."""
    if np.isfinite(values).all():
        return None
    bad = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
    metrics = [n for n in bad if not n.startswith("norm/")]
    groups = [n.removeprefix("norm/") for n in bad if n.startswith("norm/")]
    return (metrics or ["loss"])[0], (groups or [""])[0]
