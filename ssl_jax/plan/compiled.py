"""A config's training step compiled for a topology, on stand-in data of the config's shapes, and what that shows."""

import contextlib
import dataclasses
import functools
import logging
import re
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import runs, stand_in
from ssl_jax.errors import UserError
from ssl_jax.plan import costs, hlo
from ssl_jax.plan.topology import Topology
from ssl_jax.training.program import Program
from ssl_jax.training.rules import flatten

TOO_BIG = re.compile(r"RESOURCE_EXHAUSTED|Ran out of memory|out of memory", re.IGNORECASE)


def program_of(config: ConfigDict, topology: Topology, vocabulary: int | None = None) -> tuple[runs.Parts, Program]:
    """Return the parts of a run and its Program on the topology; nothing is allocated."""
    config = ConfigDict(config.to_dict())
    config.downstream = {}  # evaluators need data
    config.checkpoint = {**(config.get("checkpoint") or {}), "best": None}
    build = functools.partial(stand_in.build, config=config, vocabulary=vocabulary)
    with topology.tracing():
        parts = runs.prepare(config, build=build, devices=topology.devices)
        program = Program(
            parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, schedules=parts.schedules,
            mesh=parts.mesh, mesh_rules=parts.mesh_settings.rules,
        )  # fmt: skip
    return parts, program


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device by kind. `temporaries` hold activations and gradients; None: not known."""

    parameters: int
    optimizer: int
    average: int  # of the parameters, a teacher
    other: int  # the task's variables, hyper-parameters, counters
    batch: int
    temporaries: int | None = None
    outputs: int = 0  # that take no argument's place
    measured: int | None = None  # the compiler's own figure where the program did not fit

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer + self.average + self.other

    @property
    def peak(self) -> int:
        if self.measured is not None:
            return self.measured
        return self.state + self.batch + (self.temporaries or 0) + self.outputs


def state_memory(program: Program) -> Memory:
    """Return the bytes of state and batch that one device holds."""
    size = lambda tree: int(sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))
    state = program.abstract
    split = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    batch = sum(np.prod(x.shape) * np.dtype(x.dtype).itemsize for x in program.raw.values())
    other = (state.step, state.hyper, state.guard, state.variables)
    return Memory(size(state.params), size(state.opt_state), size(state.ema), size(other), int(batch / split))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step."""

    memory: Memory
    seconds: float  # it took to compile
    module: hlo.Module | None = None  # None: the program needs more memory than there is
    attention: str = ""  # the kernel and why it was chosen

    @property
    def collectives(self) -> list[costs.Collective]:
        return costs.collectives(self.module) if self.module else []


def compile_step(program: Program, topology: Topology) -> Compiled:
    """Compile the step of a Program. Raises UserError where it cannot be compiled for another reason than its memory."""
    memory, started = state_memory(program), time.monotonic()
    with topology.tracing(), said_by_models() as said:
        lowered = program.lowered(1, program.stream.resident)
    attention = "; ".join(dict.fromkeys(line.partition("attention kernel: ")[2] for line in said if "attention kernel" in line))
    try:
        with topology.compiling():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not TOO_BIG.search(str(error)):
            raise UserError(f"--topology={topology.text}: does not compile: {str(error).splitlines()[0]}") from error
        memory = dataclasses.replace(memory, measured=needed(str(error)) or 2 * (topology.target.memory or memory.state))
        return Compiled(memory, time.monotonic() - started, attention=attention)
    analysis = compiled.memory_analysis()
    memory = dataclasses.replace(
        memory,
        temporaries=int(analysis.temp_size_in_bytes),
        outputs=max(0, int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes)),
    )
    return Compiled(memory, time.monotonic() - started, hlo.parse(compiled.as_text()), attention)


def needed(message: str) -> int | None:
    """Return the bytes that a TPU's compiler says a program needs: "Used 64.90G of 15.75G hbm"."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return int(float(found.group(1)) * 1024 ** ("KMGT".index(found.group(2)) + 1)) if found else None


@contextlib.contextmanager
def said_by_models() -> Iterator[list[str]]:
    """Collect what the models log while they are traced: the attention kernels that they choose."""
    from ssl_jax.models import kernels

    log, lines = logging.getLogger("ssl_jax"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = log.level, log.propagate
    kernels._tell.cache_clear()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def parameters_by_part(program: Program) -> Mapping[str, int]:
    """Return the number of parameters of each part of the model, the blocks of a stack together."""
    found: dict[str, int] = {}
    for path, leaf in flatten(program.params).items():
        names = path.split("/")
        blocks = [i for i, name in enumerate(names) if name.startswith("block")]
        leaf_of = names[-1] in ("kernel", "bias", "scale") and len(names) > 1
        part = "/".join(names[: blocks[0]] + ["blocks"]) if blocks else "/".join(names[:-1] if leaf_of else names)
        found[part] = found.get(part, 0) + int(np.prod(leaf.shape))
    return found
