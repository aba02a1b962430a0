"""The compiled step of a task and the State it works on."""

import concurrent.futures
import contextlib
import operator
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssl_jax.errors import UserError
from ssl_jax.task import Params, Task
from ssl_jax.training import optimizer as optimizers
from ssl_jax.training import sharding
from ssl_jax.training import state as states
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.rules import flatten
from ssl_jax.training.settings import MeshSettings, TrainingSettings
from ssl_jax.training.state import State
from ssl_jax.training.step import TrainStep, several

SECONDS_PER_CALL, SHORT_RUN = 8.0, 1000  # on a CPU: the longest call, by a formula; the steps of a run too short for long calls


class Program:
    """The compiled step of a task, and runs of it.

    Runs share the compiled program: they may differ in seed, initial parameters, length, learning rate, weight decay and
    data, as long as the batches have the same shapes and the same transforms. Raises UserError before any device memory
    is taken when batch, devices, accumulation or rules do not fit.
    """

    def __init__(self, task: Task, stream: Any, *, training: TrainingSettings, optimizer: OptimizerSettings,
                 mesh: Mesh | MeshSettings | None = None):  # fmt: skip
        self.task, self.stream, self.training, self.settings = task, stream, training, optimizer
        self.layout = mesh if isinstance(mesh, MeshSettings) else MeshSettings()
        rows = sharding.shared_rows(stream.batch_size, training.accumulation, task.whole_batch)
        self.mesh = sharding.fitted(mesh, rows) if isinstance(mesh, Mesh) else sharding.make_mesh(self.layout, rows=rows)
        sharding.check_batch(self.mesh, stream.batch_size, training.accumulation, task.whole_batch)
        self.rows = sharding.local_rows(self.mesh, stream.batch_size)
        one = sum(np.prod(x.shape) * np.dtype(x.dtype).itemsize for x in stream.dataset.info.shapes.values())
        check_memory(self.mesh, stream.batch_size * one / self.mesh.size, "a batch", "make data.batch_size smaller")
        raw = stream.example()
        shape = lambda x: jax.ShapeDtypeStruct((stream.batch_size, *x.shape[1:]), x.dtype)
        self._raw = {name: shape(value) for name, value in raw.items()}
        self._hyper = states.hyper(optimizer, batch_size=1, seed=0, total_steps=1, warmup_steps=0, cooldown_steps=0)
        self._init = jax.jit(lambda seed: states.init_params(task, seed, self._batch))  # jitted so that it is traced once
        self._batch, self._params = self._trace()
        self.optimizer = optimizers.build(optimizer, self._params)
        self._abstract = jax.eval_shape(self._create, self._hyper, self._params)
        self.shardings = sharding.state_shardings(self._abstract, self.mesh, self.layout)
        self._abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self._abstract, self.shardings
        )
        held = sum(np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves_of(self._abstract, self.shardings))
        check_memory(self.mesh, held, "parameters and optimizer state", "make the model smaller, or split it with mesh.fsdp")
        self.step = TrainStep(
            task, stream.on_device, self.optimizer, optimizer, training.accumulation, training.ema,
            training.on_nonfinite == "skip", training.skip_outliers, sharding.cores_of(self.mesh, rows),
        )  # fmt: skip
        self.steps_per_call = self._steps_per_call()
        self._compiled: dict[Any, concurrent.futures.Future] = {}
        self._compiling = threading.Lock()
        self._make: Callable | None = None
        # run once: on CPU, optimizing it costs more than it saves
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        self._new = jax.jit(self._create, out_shardings=self.shardings, compiler_options=options)

    def _trace(self) -> tuple[Any, Any]:
        """The shapes of a batch, as the task sees it, and of the parameters."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        self._batch = jax.eval_shape(self.stream.on_device, shapes(self.stream.resident), self._raw, key)
        return self._batch, jax.eval_shape(self._init, self._hyper["seed"])

    # State --------------------------------------------------------------------------------------------------------------

    def _create(self, hyper: dict, params: Params | None) -> State:
        if params is None:
            params = self._init(hyper["seed"])
        else:
            params = jax.tree.map(jnp.copy, params)  # the caller keeps its own: the state's are donated
        return states.from_params(params, self.optimizer, hyper, self.training.ema is not None)

    def create(self, hyper: dict, params: Params | Callable[[Params], Params] | None = None) -> State:
        """A State at step 0, laid out over the mesh; `params` are given parameters, or a function of the task's own."""
        hyper = jax.tree.map(np.asarray, hyper)
        if params is None:
            return self._fresh(hyper)
        if callable(params):
            fresh = self._fresh(hyper)
            own = jax.device_get(fresh.params)
            before, structure = jax.tree.flatten(own)
            params = params(own)  # perhaps the same tree, with other arrays put into it
            if jax.tree.structure(params) == structure and all(map(operator.is_, jax.tree.leaves(params), before)):
                return fresh
        wrong = differing(self._params, params)
        if wrong:
            raise UserError(f"initial parameters: {wrong}")
        return self._new(hyper, sharding.put_state(params, self.shardings.params))

    def _fresh(self, hyper: dict) -> State:
        if self._make is None:
            self._make = self._ready(self._new, (shapes(hyper), None))
        return self._make(hyper, None)

    def _steps_per_call(self) -> int:
        """Many steps in one program pay where a step is shorter than its dispatch, and on a CPU, where every call's memory
        comes fresh from the kernel, page by page."""
        if self.training.steps_per_call != "auto":
            return self.training.steps_per_call
        flops = self.task.flops() * self.stream.batch_size
        if jax.default_backend() == "cpu":
            return int(np.clip(SECONDS_PER_CALL / max(flops / 1e11, 1e-9), 1, 4))
        return int(np.clip(0.02 / max(flops / (2e14 * self.mesh.size), 1e-9), 1, 20))

    def steps_per_call_of(self, total: int) -> int:
        """The same for a run of `total` steps: where that is the program's choice, a short run does not wait for it to
        compile."""
        chosen = self.training.steps_per_call == "auto" and jax.default_backend() == "cpu"
        return 1 if chosen and total < SHORT_RUN else self.steps_per_call

    def compiled(self, count: int, resident: Any) -> Callable:
        """The program of `count` steps, compiled once for each shape of the resident arrays."""
        key = (count, str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), resident)))
        with self._compiling:
            begun = self._compiled.get(key)
            mine = begun is None
            if mine:
                begun = self._compiled[key] = concurrent.futures.Future()
        if mine:
            try:
                begun.set_result(self._compile(count, resident))
            except BaseException as error:
                del self._compiled[key]  # who asks next sees it again
                begun.set_exception(error)
        return begun.result()

    def compile_ahead(self, count: int, resident: Any) -> None:
        """Compile in another thread what `compiled` will be asked for, and will then wait for."""
        if jax.process_count() > 1:  # which compile the same programs in the same order
            return

        def work():
            with contextlib.suppress(Exception):  # `compiled` tries again, and raises
                self.compiled(count, resident)

        threading.Thread(target=work, name="compile").start()

    def _compile(self, count: int, resident: Any) -> Callable:
        lead = () if count == 1 else (count,)
        spec = sharding.BATCH if count == 1 else jax.sharding.PartitionSpec(None, *sharding.BATCH)
        rows = jax.sharding.NamedSharding(self.mesh, spec)
        raw = {k: jax.ShapeDtypeStruct((*lead, *v.shape), v.dtype, sharding=rows) for k, v in self._raw.items()}
        out = (self.shardings, sharding.replicated(self.mesh))
        step = self.step if count == 1 else several(self.step, count)
        program = jax.jit(step, donate_argnums=0, out_shardings=out)
        arguments = (self._abstract, raw, shapes(resident, sharding.replicated(self.mesh)))
        return self._ready(program, arguments)

    def _ready(self, program: Any, arguments: tuple) -> Callable:
        """A jitted function compiled for `arguments`."""
        with self.mesh:
            return program.lower(*arguments).compile()

    def put(self, batch: dict, count: int) -> Any:
        return sharding.put_batch(batch, self.mesh, self.stream.batch_size, None if count == 1 else count)


def leaves_of(tree: Any, shardings: Any) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))


def check_memory(mesh: Mesh, needed: float, what: str, mend: str) -> None:
    """UserError when `needed` bytes cannot lie on one device, before anything is allocated."""
    limit = memory_of(mesh.devices.flat[0])
    if limit is not None and needed > limit:
        raise UserError(f"{what}: {needed / 2**30:,.1f} GiB on each device, which has {limit / 2**30:,.1f} GiB; {mend}")


def memory_of(device: Any) -> float | None:
    """The bytes of a device's memory, of the host's for a CPU device, or None where that is not known."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def shapes(tree: Any, sharding: Any = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def differing(expected: Any, given: Any) -> str | None:
    """The first parameter in which two trees differ in name or shape, in words."""
    a, b = flatten(expected), flatten(given)
    for path in sorted(set(a) | set(b)):
        if path not in b:
            return f"{path} is missing"
        if path not in a:
            return f"{path} has no place in the model"
        if a[path].shape != np.shape(b[path]):
            return f"{path} has the shape {list(np.shape(b[path]))}, expected {list(a[path].shape)}"
    return None
