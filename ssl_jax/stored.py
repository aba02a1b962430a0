"""Values that XLA's CPU compiler shall not compute again for each of their readers.

Its fusion copies cheap producers into every consumer. Along a residual stream that copies, into each block's gradients, the
whole sum of the branches above it: a step's cost grows with the square of the depth. An optimization barrier does not help, the
CPU compiler drops it before it fuses; a call that it may not inline does.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


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
