"""Memory of a step by formula, where nothing compiles for the device: the arrays that the backward pass reads.

The state is exact. Activations are the residuals of the loss's gradient as JAX traces it, of one device's rows of one
microbatch: the compiler fuses some of them away, and adds working space of its own.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ssl_jax import randomness
from ssl_jax.plan.compiled import Memory, state_memory
from ssl_jax.plan.topology import Topology
from ssl_jax.training.program import Program


def analysed(program: Program, topology: Topology) -> Memory:
    """Return the bytes that a device needs: state, batch, gradients and residuals."""
    memory, mesh = state_memory(program), program.mesh
    gradients = memory.parameters if program.training.accumulation == 1 else 2 * memory.parameters
    rows = max(1, program.stream.batch_size // program.training.accumulation // (mesh.shape["data"] * mesh.shape["fsdp"]))
    one = dataclasses.replace(topology, target=dataclasses.replace(topology.target, count=1))  # no mesh splits kernels here
    with one.tracing():
        return dataclasses.replace(memory, temporaries=gradients + residuals(program, rows))


def residuals(program: Program, rows: int) -> int:
    """Return the bytes that the gradient of the loss of `rows` examples keeps from the forward pass, without parameters."""
    task, state = program.task, program.abstract
    batch = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in program.batch.items()}
    plain = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    def backward(params: Any, state: Any, batch: Any) -> Any:
        key, context = randomness.stream(0, "task", 0), program.step.context(state)
        prepared = dict(task.prepare(batch, key, train=True))
        return jax.vjp(lambda p: task.loss(p, prepared, key, train=True, context=context)[0], params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, plain(state.params), plain(state), batch))
    size = lambda x: int(np.prod(x.shape)) * x.dtype.itemsize
    given = sorted((x.shape, str(x.dtype)) for x in jax.tree.leaves(state.params))
    total = 0
    for x in kept:
        if (x.shape, str(x.dtype)) in given:  # a parameter, which lies in memory anyhow
            given.remove((x.shape, str(x.dtype)))
        else:
            total += size(x)
    return total
