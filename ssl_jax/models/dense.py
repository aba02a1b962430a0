"""The dense layer of all models."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from ssl_jax import cpu, partition


class Dense(nn.Module):
    """Flax's dense layer, with the same parameters and values; the matmul takes the form that suits platform and mesh."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... {self.features}"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        given, (x, cast) = kernel, promote_dtype(x, kernel, dtype=self.dtype)
        if cast.dtype != given.dtype and partition.free_axes(partition.ROWS):
            return affine_wide_gradient(x, given, bias)
        return cpu.affine(x, cast, bias)


@jax.custom_vjp
def affine_wide_gradient(
    x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, "outputs"] | None
) -> Float[Array, "... outputs"]:
    """Return x @ kernel + bias in the dtype of x; the gradients of kernel and bias are computed in their own dtype, f32.

    For a batch that XLA splits over devices: it sums each device's part of a gradient in the dtype of the product, and
    autodiff's product is rounded to the dtype of x before. The kernel is still gathered in the dtype of x.
    """
    return _affine(x, kernel, bias)


def _affine(x, kernel, bias):
    return cpu.affine(x, kernel.astype(x.dtype), bias)


def _backward(residual, g):
    x, kernel, bias = residual
    rows = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(g, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))
    d_kernel = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype)
    return dx, d_kernel, None if bias is None else jnp.sum(g, axis=rows, dtype=bias.dtype)


# The forward pass calls no function with its own gradient, in which the recomputation policy "dots" would see no product.
affine_wide_gradient.defvjp(lambda *arrays: (_affine(*arrays), arrays), _backward)
