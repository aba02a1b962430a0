"""The compiled step of a task and the State it works on."""

import concurrent.futures
import operator
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax import target
from ssl_jax.errors import UserError
from ssl_jax.task import Params, Task
from ssl_jax.training import optimizer as optimizers
from ssl_jax.training import sharding
from ssl_jax.training import state as states
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.rules import flatten
from ssl_jax.training.schedules import NO_SCHEDULES, Schedules
from ssl_jax.training.settings import MeshSettings, TrainingSettings
from ssl_jax.training.state import State
from ssl_jax.training.step import TrainStep, several

LOWERED = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # names of platforms for lowering
SECONDS_PER_CALL, SHORT_RUN = 8.0, 1000  # on a CPU: longest call by estimate; runs of fewer steps use one step per call


class Program:
    """The step of a task, compiled for a stream's batches and a mesh.

    Runs share it: they may differ in seed, initial parameters, length, learning rate, weight decay and data, as long as
    the batches have the same shapes and the same transforms. Raise UserError before allocating device memory if batch,
    devices, accumulation or rules do not fit.
    """

    replicas = 1  # runs that one State holds

    def __init__(self, task: Task, stream: Any, *, training: TrainingSettings, optimizer: OptimizerSettings,
                 schedules: Schedules = NO_SCHEDULES, mesh: Mesh | MeshSettings | None = None,
                 mesh_rules: tuple = ()):  # fmt: skip
        self.task, self.stream, self.training, self.settings, self.schedules = task, stream, training, optimizer, schedules
        self.averages = training.ema is not None or schedules.ema is not None
        if task.needs_teacher and not self.averages:
            raise UserError(
                f"training.ema is missing: the task {task.name} has a teacher; set its decay here or as schedules.ema"
            )
        # for a given mesh, `mesh_rules` (those of the settings) shard the parameters
        self.layout = mesh if isinstance(mesh, MeshSettings) else MeshSettings(rules=mesh_rules)
        rows = sharding.shared_rows(stream.batch_size, training.accumulation, task.relates_examples)
        self.mesh = sharding.fitted(mesh, rows) if isinstance(mesh, Mesh) else sharding.make_mesh(self.layout, rows=rows)
        sharding.check_batch(self.mesh, stream.batch_size, training.accumulation, task.relates_examples)
        self.rows = sharding.local_rows(self.mesh, stream.batch_size)
        one = sum(np.prod(x.shape) * np.dtype(x.dtype).itemsize for x in stream.dataset.info.shapes.values())
        check_memory(self.mesh, stream.batch_size * one / self.mesh.size, "a batch", "make data.batch_size smaller")

        self.raw = {name: jax.ShapeDtypeStruct((stream.batch_size, *x.shape[1:]), x.dtype)
                    for name, x in stream.example().items()}  # fmt: skip
        key = jax.eval_shape(lambda: jax.random.key(0))
        self.batch = jax.eval_shape(stream.on_device, shapes(stream.resident), self.raw, key)  # as the task sees it
        hyper = self.hyper(batch_size=1, seed=0, total_steps=1, warmup_steps=0, cooldown_steps=0)
        self._init = jax.jit(lambda seed: states.init_params(task, seed, self.batch))  # jitted to trace it only once
        self.params = jax.eval_shape(self._init, hyper["seed"])
        self.optimizer = optimizers.build(optimizer, self.params, scheduled=schedules)
        abstract = jax.eval_shape(self.new_state, hyper, self.params)
        self.shardings = sharding.state_shardings(abstract, self.mesh, self.layout)
        self.abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, self.shardings
        )  # the State's shapes and shardings
        held = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(self.abstract))
        check_memory(self.mesh, held, "parameters and optimizer state", "make the model smaller or split it with mesh.fsdp")

        self.step = TrainStep(
            task, stream.on_device, self.optimizer, optimizer, schedules, training.accumulation, training.ema,
            training.on_nonfinite == "skip", training.skip_outliers,
            sharding.data_parallel(self.mesh, stream.batch_size // training.accumulation),
        )  # fmt: skip
        self.steps_per_call = self._steps_per_call()
        self._programs = CompiledAhead(self.compile)
        # run once: on a CPU, optimizing it costs more than it saves
        options = {"xla_backend_optimization_level": 0} if target.current().platform == "cpu" else None
        self._new = jax.jit(self.new_state, out_shardings=self.shardings, compiler_options=options)

    # State --------------------------------------------------------------------------------------------------------------

    def hyper(self, **values: Any) -> dict[str, Any]:
        """Return a run's hyper-parameters; `values` as for `state.hyper`, with "schedules", if any, in steps."""
        values.setdefault("schedules", {name: s.numbers(1) for name, s in self.schedules.by_name().items()})
        return states.hyper(self.settings, numbers=self.task.scheduled(), **values)

    def new_state(self, hyper: dict, params: Params | None = None, variables: Any = None) -> State:
        """Return the state at step 0, by default with the task's own parameters and variables (jittable)."""
        if params is None:
            params = self._init(hyper["seed"])
        else:
            params = jax.tree.map(jnp.copy, params)  # the state's parameters will be donated
        return states.new_state(self.task, self.optimizer, hyper, params, variables, self.averages)

    def create(
        self,
        hyper: dict,
        params: Params | Callable[[Params], Params] | None = None,
        variables: Callable[[Any], Any] | None = None,
    ) -> State:
        """Return a State at step 0, laid out over the mesh.

        params: given parameters, or a function of the task's own; variables: a function of the task's own.
        """
        hyper = jax.tree.map(np.asarray, hyper)
        if params is None and variables is None:
            return self._new(hyper)
        fresh = self._new(hyper)
        own, held = sharding.to_host(fresh.params), sharding.to_host(fresh.variables)
        before = jax.tree.leaves(own)
        new = own if params is None else params(own) if callable(params) else params
        held = variables(held) if variables is not None else held
        wrong = differing(self.params, new) or differing(self.abstract.variables, held)
        if wrong:
            raise UserError(f"initial parameters: {wrong}")
        if variables is None and all(map(operator.is_, jax.tree.leaves(new), before)):
            return fresh  # nothing was replaced
        held = None if variables is None else sharding.put_state(held, self.shardings.variables)
        return self._new(hyper, sharding.put_state(new, self.shardings.params), held)

    # Compiling ----------------------------------------------------------------------------------------------------------

    def _steps_per_call(self) -> int:
        """Return the steps per call: if steps are short, several amortise dispatch and, on a CPU, page faults."""
        if self.training.steps_per_call != "auto":
            return self.training.steps_per_call
        flops = self.task.flops() * self.stream.batch_size
        if target.current().platform == "cpu":
            return int(np.clip(SECONDS_PER_CALL / max(flops / 1e11, 1e-9), 1, 4))
        return int(np.clip(0.02 / max(flops / (2e14 * self.mesh.size), 1e-9), 1, 20))

    def steps_per_call_of(self, total: int) -> int:
        """Return the same for a run of `total` steps: on a CPU, compiling several steps does not pay for a short run."""
        chosen = self.training.steps_per_call == "auto" and target.current().platform == "cpu"
        return 1 if chosen and total < SHORT_RUN else self.steps_per_call

    def compiled(self, count: int, resident: Any) -> Callable:
        """Return the program of `count` steps, (state, batch, resident) -> (state, metrics), compiled once."""
        return self._programs.get(count, shapes_key(resident), resident)

    def compile_ahead(self, count: int, resident: Any) -> None:
        """Start compiling, in another thread, the program that `compiled` will return."""
        self._programs.begin(count, shapes_key(resident), resident)

    def compile(self, count: int, resident: Any) -> Callable:
        return self.lowered(count, resident).compile()

    def lowered(self, count: int, resident: Any) -> jax.stages.Lowered:
        """Return the program of `count` steps, traced and lowered for the mesh's platform, which need not be present."""
        replicated = sharding.replicated(self.mesh)
        spec = sharding.BATCH if count == 1 else PartitionSpec(None, *sharding.BATCH)
        rows, lead = NamedSharding(self.mesh, spec), () if count == 1 else (count,)
        raw = {k: jax.ShapeDtypeStruct((*lead, *v.shape), v.dtype, sharding=rows) for k, v in self.raw.items()}
        step = self.step if count == 1 else several(self.step, count)
        program = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, replicated))
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # `partition` reads it
            traced = program.trace(self.abstract, raw, shapes(resident, replicated))
            return traced.lower(lowering_platforms=(LOWERED[self.mesh.devices.flat[0].platform],))

    def put(self, batch: dict, count: int) -> Any:
        """Return a host batch (with a leading axis of `count` steps if above 1) on the devices."""
        return sharding.put_batch(batch, self.mesh, self.stream.batch_size, None if count == 1 else count)


class CompiledAhead:
    """Programs by name, each compiled once, optionally ahead of its first use in another thread, to save start-up time.

    Several processes must compile the same programs in the same order, so they compile nothing ahead.
    """

    def __init__(self, make: Callable[[int, Any], Callable]):
        self._make, self._lock = make, threading.Lock()
        self.futures: dict[Any, concurrent.futures.Future] = {}

    def begin(self, count: int, key: str, resident: Any) -> None:
        if jax.process_count() == 1:
            threading.Thread(target=self._future, args=(count, key, resident), name="compile").start()

    def get(self, count: int, key: str, resident: Any) -> Callable:
        return self._future(count, key, resident).result()

    def _future(self, count: int, key: str, resident: Any) -> concurrent.futures.Future:
        with self._lock:
            found = self.futures.get((count, key))
            if found is not None:
                return found
            found = self.futures[count, key] = concurrent.futures.Future()
        try:
            found.set_result(self._make(count, resident))
        except BaseException as error:
            del self.futures[count, key]  # the next request tries again
            found.set_exception(error)
        return found


def check_memory(mesh: Mesh, needed: float, what: str, advice: str) -> None:
    """Raise UserError if `needed` bytes do not fit on one device, before allocating anything."""
    limit = memory_of(next((d for d in mesh.devices.flat if d.process_index == jax.process_index()), None))
    if limit is not None and needed > limit:
        raise UserError(f"{what}: needs {needed / 2**30:,.1f} GiB per device, which has {limit / 2**30:,.1f} GiB; {advice}")


def memory_of(device: Any) -> float | None:
    """Return the bytes of a device's memory (for a CPU device, the host's), or None if unknown."""
    if device is None:
        return None
    if device.platform != "cpu":
        try:
            return (device.memory_stats() or {}).get("bytes_limit")
        except jax.errors.JaxRuntimeError:  # an absent device: programs are only compiled for it
            return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def shapes(tree: Any, sharding: Any = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def shapes_key(tree: Any) -> str:
    return str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree))


def differing(expected: Any, given: Any) -> str | None:
    """Return the first array in which two trees differ in name or shape, in words."""
    a, b = flatten(expected), flatten(given)
    for path in sorted(set(a) | set(b)):
        if path not in b:
            return f"{path} is missing"
        if path not in a:
            return f"{path} has no place in the model"
        if a[path].shape != np.shape(b[path]):
            return f"{path} has the shape {list(np.shape(b[path]))}, expected {list(a[path].shape)}"
    return None
