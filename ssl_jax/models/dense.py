"""A dense layer whose gradient XLA compiles well on a CPU."""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def _matmul(x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "... outputs"]:
    return x @ kernel


def _backward(residual, g):
    x, kernel = residual
    g = jax.lax.optimization_barrier(g)
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if rows.shape[1] > columns.shape[1]:  # a wide input: XLA is faster with the narrow side turned
        turned = jax.lax.optimization_barrier(columns.T) @ rows
        return g @ kernel.T, jax.lax.optimization_barrier(turned).T
    return g @ kernel.T, jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _backward)


def dot_general(x, kernel, dimensions, precision=None, **options):
    """lax.dot_general of a dense layer.

    Autodiff contracts the kernel's gradient over a transposed copy of the cotangent, into which XLA's CPU compiler fuses,
    for every block again, the whole sum of the residual branches above it. There the gradient is therefore written out
    (the same products). Other backends keep XLA's own.
    """
    if jax.default_backend() != "cpu" or kernel.ndim != 2 or x.dtype != kernel.dtype:
        return jax.lax.dot_general(x, kernel, dimensions, precision=precision, **options)
    return _matmul(x, kernel)


Dense = functools.partial(nn.Dense, dot_general=dot_general)  # the same parameters and values
