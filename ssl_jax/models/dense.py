"""Matrix products, and dense layers, in the forms that XLA compiles well on a CPU."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from ssl_jax.cpu import apart


def product(x: Float[Array, "*batch m k"], y: Float[Array, "*batch k n"], dtype: Any = None) -> Float[Array, "*batch m n"]:
    """x @ y, summed in f32, in `dtype` (x's own by default). Off the CPU it is rounded to x's dtype on the way.

    XLA's CPU runtime has fast kernels for products of bf16 (AMX: three to four times f32's rate), which it takes for an f32
    result only, of factors that are not turned, and of nothing fused. So there the product is a call of its own, and
    `turned` turns a factor before it.
    """
    dtype = dtype or x.dtype
    if narrow(x, y):
        return _in_f32(x, y).astype(dtype)
    return jnp.matmul(x, y).astype(dtype)  # an f32 result would make the gradient's products f32's, and slow


def turned(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch n m"]:
    """The last two axes swapped: for one factor of a `product`."""
    return _turned(x) if narrow(x) else x.swapaxes(-1, -2)


def narrow(*factors: Array) -> bool:
    """Whether these are factors of bf16 on a CPU."""
    return jax.default_backend() == "cpu" and all(x.dtype == jnp.bfloat16 for x in factors)


@apart
def _in_f32(x, y):
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


@apart
def _turned(x):
    return x.swapaxes(-1, -2)


@jax.custom_vjp
def _matmul(x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "... outputs"]:
    return product(rows_of(x), kernel).reshape(*x.shape[:-1], -1)


def _backward(residual, g):
    x, kernel = residual
    g = jax.lax.optimization_barrier(g)
    rows, columns = rows_of(x), rows_of(g)
    dx = product(columns, turned(kernel)).reshape(x.shape)
    if not narrow(x) and rows.shape[1] > columns.shape[1]:  # a wide input: XLA is faster with the narrow side turned
        return dx, jax.lax.optimization_barrier(jax.lax.optimization_barrier(columns.T) @ rows).T
    return dx, product(turned(rows), columns)


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _backward)


def rows_of(x: Float[Array, "... n"]) -> Float[Array, "rows n"]:
    return x.reshape(-1, x.shape[-1])


def dot_general(x, kernel, dimensions, precision=None, **options):
    """lax.dot_general of a dense layer.

    Autodiff contracts the kernel's gradient over a transposed copy of the cotangent, into which XLA's CPU compiler fuses,
    for every block again, the whole sum of the residual branches above it. There the gradient is therefore written out
    (the same products). Other backends keep XLA's own.
    """
    if jax.default_backend() != "cpu" or kernel.ndim != 2 or x.dtype != kernel.dtype:
        return jax.lax.dot_general(x, kernel, dimensions, precision=precision, **options)
    return _matmul(x, kernel)


@jax.custom_vjp
def _affine(x, kernel, bias):
    """x @ kernel + bias in bf16 on a CPU: the bias in f32, since XLA's sum of a bf16 cotangent is slow."""
    return (product(rows_of(x), kernel, jnp.float32) + bias).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _affine_backward(residual, g):
    return *_backward(residual, g), jnp.sum(rows_of(g).astype(jnp.float32), axis=0)


_affine.defvjp(lambda x, kernel, bias: (_affine(x, kernel, bias), (x, kernel)), _affine_backward)


class Dense(nn.Module):
    """flax's dense layer: the same parameters and values."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... {self.features}"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        if bias is not None and narrow(x, kernel):
            return _affine(x, kernel, bias)
        y = dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        return y if bias is None else y + bias.astype(y.dtype)
