"""One training step: gradients of a task's loss, accumulated, guarded and applied. Pure; `jax.vmap` over the state is legal."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ssl_jax import partition, randomness
from ssl_jax.cpu import no_inline
from ssl_jax.task import Batch, Context, Metrics, Task
from ssl_jax.training import rules
from ssl_jax.training.grad_cache import in_chunks
from ssl_jax.training.optimizer import OptimizerSettings, learning_rate, multipliers
from ssl_jax.training.schedules import NO_SCHEDULES, Schedules
from ssl_jax.training.state import State

OUTLIER_MEMORY = 128  # steps over which the gradient norm's mean and variance are averaged
TABLES = r"(.*/)?token_embedding"  # a model looks up their rows; its output layer may be tied to them
GROUP = "norm/"  # prefix of the metrics that hold a parameter group's gradient norm


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: jax.jit needs a hash
class TrainStep:
    """A function (state, raw batch, resident arrays) -> (state, metrics: name -> f32[]).

    Metrics named "norm/..." are the gradient norms of parameter groups, used to locate a divergence.
    """

    task: Task
    on_device: Callable[[Any, Batch, Array], Batch]
    optimizer: optax.GradientTransformationExtraArgs
    settings: OptimizerSettings
    schedules: Schedules = NO_SCHEDULES
    accumulation: int = 1
    ema: float | None = None  # constant decay of the moving average, unless it has a schedule
    guard: bool = False  # skip the update if the loss or a gradient is not finite
    outliers: float | None = None
    replicas: Mesh | None = None  # data-parallel devices, each with all parameters, for the gradients of its own rows

    def __call__(self, state: State, raw: Batch, resident: Any) -> tuple[State, Metrics]:
        seed, data_step = state.hyper["seed"], state.step + state.hyper["data_offset"]
        batch = self.on_device(resident, raw, randomness.stream(seed, "augment", data_step))
        bad = {"bad_examples": jnp.sum(batch.pop("bad"))} if "bad" in batch else {}  # skipped and replaced by others
        key, context = randomness.stream(seed, "task", data_step), self.context(state)
        batch = dict(self.task.prepare(batch, key, train=True))
        loss, outputs, grads = self.gradients(state.params, batch, key, context)
        metrics, statistics = split_outputs(outputs)

        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params, hyper=state.hyper, step=state.step)
        params, update_norm = applied(state.params, updates)
        params, variables = self.task.after_update(params, state.variables, statistics, context)
        ema = state.ema if state.ema is None else self.averaged(state, params)
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema, variables=variables)

        groups = group_norms(grads)
        norm = jnp.sqrt(sum(jnp.square(g) for g in groups.values()))
        new, guarded = self.guarded(state, new, loss, norm)
        metrics = {
            "loss": loss,
            **{name: value for name, value in metrics.items() if name != "loss"},
            **self.task.diagnostics(statistics),
            "lr": learning_rate(self.settings, state.hyper, state.step),
            "grad_norm": norm,
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(params),
            **guarded,
            **bad,
            **{f"{GROUP}{name}": value for name, value in groups.items()},
        }
        return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def context(self, state: State) -> Context:
        """Return the task's context at this step."""
        numbers = dict(state.hyper["numbers"])
        numbers |= {name: self.schedules.value(f"task/{name}", state.hyper, state.step) for name in self.schedules.task}
        return Context(state.step, state.hyper["total_steps"], state.ema, state.variables, numbers)

    def averaged(self, state: State, params: Any) -> Any:
        """Return the moving average after this step: decay * ema + (1 - decay) * params."""
        decay = self.ema if self.schedules.ema is None else self.schedules.value("ema", state.hyper, state.step)
        return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)

    def gradients(self, params: Any, batch: Batch, key: Array, context: Context) -> tuple[Array, Metrics, Any]:
        """Return loss, metrics and gradients of the global batch.

        Each microbatch, and with `replicas` each device's rows, is weighted by its metric "weight". A loss that relates
        examples is computed on the global batch, its embeddings piece by piece.
        """
        frozen = multipliers(self.settings, params).frozen

        def loss(params, batch, key, context):
            trained = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
            return self.loss(self.with_copies(trained, batch), batch, key, context)

        gradient = jax.value_and_grad(loss, has_aux=True)
        n = 1 if self.task.relates_examples else self.accumulation
        if self.task.relates_examples or (n == 1 and self.replicas is None):
            (value, metrics), grads = gradient(params, batch, key, context)
            return value, metrics, grads

        weighs = False  # whether the task returns a weight, known once its loss is traced

        def weighted(params, batch, key, context):
            nonlocal weighs
            (value, metrics), grads = gradient(params, batch, key, context)
            weighs = "weight" in metrics
            weight = metrics.get("weight", jnp.ones(()))
            sums = {"loss": value, **{k: v for k, v in metrics.items() if k != "weight"}}
            return jax.tree.map(lambda x: x * weight, (sums, grads)), weight

        def accumulated(params, batch, key, context):
            # Rows m, m + n, m + 2n ... form microbatch m: each device then keeps its own rows.
            split = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
            micro = jax.tree.map(split, batch)
            shapes = jax.eval_shape(weighted, params, jax.tree.map(lambda x: x[0], micro), key, context)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            add = lambda total, rows: (jax.tree.map(jnp.add, total, weighted(params, rows, key, context)), None)
            return jax.lax.scan(add, zeros, micro)[0]

        sums_of = weighted if n == 1 else accumulated
        if self.replicas is not None:
            sums_of = over_devices(sums_of, self.replicas)
        (sums, grads), weight = sums_of(params, batch, key, context)
        metrics, grads = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), (sums, grads))
        value = metrics.pop("loss")
        return value, metrics | ({"weight": weight} if weighs else {}), grads

    def with_copies(self, params: Any, batch: Batch) -> Any:
        """Return the parameters with a copy of each embedding table for each device, if XLA splits the batch over devices."""
        if self.replicas is not None:
            return params
        size = len(jax.tree.leaves(batch)[0]) // (self.accumulation if self.task.relates_examples else 1)
        is_table = lambda path: re.fullmatch(TABLES, rules.path_of(path)) is not None
        copied = lambda path, p: partition.copies(p, size) if is_table(path) else p
        return jax.tree_util.tree_map_with_path(copied, params)

    def loss(self, params: Any, batch: Batch, key: Array, context: Context) -> tuple[Array, Metrics]:
        """Return the task's loss. The rows of a joint loss are embedded in pieces: with `replicas`, each device's own, whose
        gradients are then summed over the devices once; with accumulation, one after another."""
        task = self.task
        if not (task.relates_examples and (self.accumulation > 1 or self.replicas is not None)):
            return task.loss(params, batch, key, train=True, context=context)

        def embedded(params, batch, key, context):
            embed = lambda piece: task.embed(params, piece, key, train=True, context=context)
            return in_chunks(embed, (batch,), self.accumulation)

        if self.replicas is not None:
            rows = P(self.replicas.axis_names)
            specs = (P(), rows, P(), P())
            embedded = jax.shard_map(embedded, mesh=self.replicas, in_specs=specs, out_specs=rows, check_vma=False)
        return task.joint_loss(params, embedded(params, batch, key, context), batch, train=True, context=context)

    def guarded(self, old: State, new: State, loss: Array, norm: Array) -> tuple[State, Metrics]:
        """Skip the update on non-finite or outlier gradients; `step` and `hyper` still advance."""
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
        either = lambda a, b: jax.tree.map(lambda x, y: jnp.where(skip, x, y), a, b)
        names = ("params", "opt_state", "ema", "variables")
        new = new.replace(guard=guard, **{name: either(getattr(old, name), getattr(new, name)) for name in names})
        return new, {"skipped": guard["skipped"]}


def split_outputs(outputs: Metrics) -> tuple[Metrics, Metrics]:
    """Return (scalars, arrays) of the metrics that a loss returned."""
    arrays = {name: value for name, value in outputs.items() if jnp.ndim(value)}
    return {name: value for name, value in outputs.items() if name not in arrays}, arrays


@no_inline
def applied(params: Any, updates: Any) -> tuple[Any, Float[Array, ""]]:
    """Return the parameters after the updates, and the updates' norm.

    Not inlined: XLA's CPU compiler would otherwise recompute the updates from the old parameters in both consumers, and
    copy the old parameters to do so.
    """
    return optax.apply_updates(params, updates), optax.tree.norm(updates)


def over_devices(sums: Callable, mesh: Mesh) -> Callable:
    """Return `sums(params, batch, key, context)` of each device's rows, summed over the devices once per step.

    On a CPU they are summed as one vector, since XLA's CPU runtime synchronises all cores for each array. Elsewhere XLA
    combines all-reduces itself and starts them before the last gradient is computed.
    """

    def local(params, batch, key, context):
        found = sums(params, batch, key, context)
        if mesh.devices.flat[0].platform != "cpu":
            return jax.lax.psum(found, mesh.axis_names)
        flat, unravel = ravel_pytree(found)
        return unravel(jax.lax.psum(flat, mesh.axis_names))

    rows = P(mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), rows, P(), P()), out_specs=P(), check_vma=False)


def group_norms(grads: Any) -> dict[str, Float[Array, ""]]:
    """Return the gradient's norm of every parameter group: a block, or a top-level module outside the blocks."""
    squares: dict[str, list] = {}
    for path, grad in rules.flatten(grads).items():
        squares.setdefault(group_of(path), []).append(jnp.sum(jnp.square(grad.astype(jnp.float32))))
    return {name: jnp.sqrt(sum(values)) for name, values in squares.items()}


def group_of(path: str) -> str:
    """Return a path's group: "encoder/block03/mlp/up/kernel" -> "encoder/block03"; "encoder/norm/scale" -> "encoder/norm"."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if part.startswith("block"):
            return "/".join(parts[: i + 1])
    return "/".join(parts[: max(len(parts) - 1, 1)][:2])


def several(step: Callable, count: int) -> Callable:
    """Return `count` steps in one program, over batches with a leading axis of steps; metrics f32[count] each."""

    def steps(state: State, raw: Batch, resident: Any):
        return jax.lax.scan(lambda s, b: step(s, b, resident), state, raw, length=count)

    return steps


def lines_of(metrics: Mapping[str, np.ndarray], count: int) -> list[dict[str, Any]]:
    """Return the metrics of each of a call's `count` steps, the loss first; arrays f32[replicas] for replicas."""
    metrics = {"loss": metrics["loss"], **metrics}
    steps = [{name: value if count == 1 else value[i] for name, value in metrics.items()} for i in range(count)]
    return [{name: float(value) if np.ndim(value) == 0 else value for name, value in line.items()} for line in steps]


def logged(line: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a step for the log, without group norms and, for a skipped update, without non-finite values,
    which would make the means non-finite."""
    skipped = nonfinite(line) is not None
    return {name: v for name, v in line.items() if not name.startswith(GROUP) and (np.isfinite(v) or not skipped)}


def nonfinite(metrics: Mapping[str, float]) -> tuple[str, str] | None:
    """Return (first metric, first parameter group) that is not finite, or None; the group is "" if all gradients are finite."""
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if not bad:
        return None
    values = sorted((name for name in bad if not name.startswith(GROUP)), key=lambda name: name != "loss")
    groups = [name.removeprefix(GROUP) for name in bad if name.startswith(GROUP)]
    return (values or ["loss"])[0], (groups or [""])[0]
