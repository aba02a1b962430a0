"""Values that XLA's CPU compiler shall not compute again for each of their readers.

Its fusion copies cheap producers into every consumer. Along a residual stream that copies, into each block's gradients, the
whole sum of the branches above it: a step's cost grows with the square of the depth. An optimization barrier does not help, the
CPU compiler drops it before it fuses; a call that it may not inline does.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from ssl_jax.devices import cores


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`; on a CPU a call of its own, whose arguments are written to memory before it and whose results after it."""
    called = jax.jit(function)

    @functools.wraps(function)
    def call(*arguments):
        if jax.default_backend() != "cpu":
            return function(*arguments)
        with set_xla_metadata(inlineable="false"):
            return called(*arguments)

    return call


def stored(x: jax.Array) -> jax.Array:
    """`x`; on a CPU it is written to memory here."""
    return _same(x) if jax.default_backend() == "cpu" else x


@apart
def _same(x):
    return jax.lax.optimization_barrier(x)  # some operation, or the call would not be there


@jax.custom_vjp
def gradient_stored(x: jax.Array) -> jax.Array:
    """`x`, whose cotangent is `stored`."""
    return x


gradient_stored.defvjp(lambda x: (x, None), lambda _, g: (stored(g),))


# Devices and memory of the process: called by `start.start_process`, never on import ------------------------------------

MOST_CORES = 4  # each device holds a copy of the state
cores_are_devices = False  # whether `split_cores` chose the number of devices; some may then be left idle by a mesh


def configure() -> None:
    """Make each core a JAX device, and run a program of one device on the thread that calls it.

    Must come before JAX's first use of a device. JAX otherwise hands a program of one device to a thread pool, in whose
    threads the C library returns blocks of over 64 MB to the kernel after every call (see `keep_freed_memory`).
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    split_cores()


def split_cores() -> None:
    """Make each core, up to MOST_CORES, a JAX device; no change where the user or several processes have chosen already.

    Two cores that each work on half the rows are faster than two that share every operation (experiments/throughput).
    """
    global cores_are_devices
    from jax._src import distributed  # the public module does not say in every version whether it was initialised

    chosen = jax.config.jax_num_cpu_devices != -1 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or distributed.global_state.client is not None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", min(cores(), MOST_CORES))
        cores_are_devices = True
    except RuntimeError:  # JAX has its devices already
        return


def keep_freed_memory() -> bool:
    """Let the C library keep what a CPU program frees for its next call; True where that worked (glibc).

    Blocks of over 32 MiB are otherwise returned to the kernel after every step and come back page by page, zeroed: a third
    of the time of a small GPT's step.
    """
    if jax.default_backend() != "cpu":
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))
