"""Workarounds for XLA's CPU compiler and runtime; on GPU and TPU each function has its plain definition.

docs/cpu.md lists for each what XLA does without it, the measured cost, and when it can be removed.
"""

import ctypes
import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from ssl_jax import target
from ssl_jax.devices import cores
from ssl_jax.randomness import drop


def traced_for() -> bool:
    """Return whether the program being traced is for a CPU."""
    return target.current().platform == "cpu"


# Values that are computed once ----------------------------------------------------------------------------------------


def no_inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make `function` a call that XLA may not inline: its arguments and results are materialized and not fused."""
    called = jax.jit(function)

    @functools.wraps(function)
    def call(*arguments):
        if not traced_for():
            return function(*arguments)
        with set_xla_metadata(inlineable="false"):
            return called(*arguments)

    return call


def materialize(x: Array) -> Array:
    """Write `x` to memory here instead of recomputing it in each consumer."""
    return _materialize(x) if traced_for() else x


@no_inline
def _materialize(x):
    return jax.lax.optimization_barrier(x)  # without any operation, the call would be removed


@jax.custom_vjp
def materialize_cotangent(x: Array) -> Array:
    """Return `x`; its cotangent is written to memory instead of being recomputed in each consumer."""
    return x


materialize_cotangent.defvjp(lambda x: (x, None), lambda _, g: (materialize(g),))


# Matrix products ------------------------------------------------------------------------------------------------------


def is_cpu_bf16(*factors: Array) -> bool:
    """Return whether these are bf16 operands of a product on a CPU, for which only one layout has a fast kernel."""
    return all(x.dtype == jnp.bfloat16 for x in factors) and traced_for()


def matmul(
    x: Float[Array, "... m k"], y: Float[Array, "... k n"], dtype: Any = None, *, accumulate: Any = None
) -> Float[Array, "... m n"]:
    """Return x @ y in `dtype` (default: that of x), accumulated in f32.

    In bf16 on a CPU this is a separate call with an f32 result; elsewhere the product is rounded to `accumulate` (default:
    the dtype of x) first.
    """
    dtype = dtype or x.dtype
    if is_cpu_bf16(x, y):
        return _matmul_f32(x, y).astype(dtype)
    if accumulate is not None:
        return jnp.matmul(x, y, preferred_element_type=accumulate).astype(dtype)
    return jnp.matmul(x, y).astype(dtype)  # with an f32 result, the gradient's products would be in f32, and slow


def transpose(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch n m"]:
    """Swap the last two axes of an operand of a `matmul`; in bf16 on a CPU, materialize the result before the product."""
    return _transpose(x) if is_cpu_bf16(x) else x.swapaxes(-1, -2)


@no_inline
def _matmul_f32(x, y):
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


@no_inline
def _transpose(x):
    return x.swapaxes(-1, -2)


def affine(
    x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, "outputs"] | None = None
) -> Float[Array, "... outputs"]:
    """Return x @ kernel + bias: a dense layer."""
    if x.dtype == kernel.dtype and traced_for():
        if bias is not None and is_cpu_bf16(x, kernel):
            return _affine_bf16(x, kernel, bias)
        y = _dense(x, kernel)
    else:
        y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + bias.astype(y.dtype)


@jax.custom_vjp
def _dense(x, kernel):
    """Return x @ kernel; autodiff's gradient is written out, so that the cotangent is not fused into both products."""
    return matmul(_rows(x), kernel).reshape(*x.shape[:-1], -1)


def _dense_backward(residual, g):
    x, kernel = residual
    g = jax.lax.optimization_barrier(g)
    rows, columns = _rows(x), _rows(g)
    dx = matmul(columns, transpose(kernel)).reshape(x.shape)
    if not is_cpu_bf16(x) and rows.shape[1] > columns.shape[1]:  # a wide input: faster with the narrow side transposed
        return dx, jax.lax.optimization_barrier(jax.lax.optimization_barrier(columns.T) @ rows).T
    return dx, matmul(transpose(rows), columns)


_dense.defvjp(lambda x, kernel: (_dense(x, kernel), (x, kernel)), _dense_backward)


@jax.custom_vjp
def _affine_bf16(x, kernel, bias):
    """Return x @ kernel + bias, with the bias and its gradient in f32 because summing a bf16 cotangent is slow."""
    return (matmul(_rows(x), kernel, jnp.float32) + bias).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _affine_bf16_backward(residual, g):
    return *_dense_backward(residual, g), jnp.sum(_rows(g).astype(jnp.float32), axis=0)


_affine_bf16.defvjp(lambda x, kernel, bias: (_affine_bf16(x, kernel, bias), (x, kernel)), _affine_bf16_backward)


def _rows(x: Float[Array, "... n"]) -> Float[Array, "rows n"]:
    return x.reshape(-1, x.shape[-1])


# Attention ------------------------------------------------------------------------------------------------------------


def written_out_gradient(weights_of: Callable[..., Array]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Decorate attention(rate, q, k, v, mask, kept), with the weights `weights_of(q, k, mask)`, with an explicit gradient.

    The softmax's gradient needs sum_t p_t dp_t = o . do for each query (Dao et al. 2022, appendix B.4), a sum over the head's
    width. Autodiff sums over the keys instead, through a division that XLA:CPU then repeats for every weight.
    """

    def decorate(attention):
        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        def attended(rate, q, k, v, mask, kept):
            return attention(rate, q, k, v, mask, kept)

        def forward(rate, q, k, v, mask, kept):
            weights = jax.lax.optimization_barrier(weights_of(q, k, mask))
            y = grouped_matmul(drop(weights, kept, rate).astype(v.dtype), v)
            return y, (q, k, v, mask, kept, weights, y)

        attended.defvjp(forward, _attention_backward)

        @functools.wraps(attention)
        def call(rate, q, k, v, mask, kept):
            written_out = q.dtype == k.dtype == v.dtype and traced_for()
            return (attended if written_out else attention)(rate, q, k, v, mask, kept)

        return call

    return decorate


def grouped_matmul(x: Float[Array, "batch kv_heads group q n"], y: Float[Array, "batch kv_heads n m"], dtype=None):
    """Return x @ y, where the heads of a group share y, in `dtype` (default: that of x)."""
    batch, kv_heads, group, time, _ = x.shape
    return matmul(x.reshape(batch, kv_heads, group * time, -1), y, dtype).reshape(batch, kv_heads, group, time, -1)


def _attention_backward(rate, residual, dy):
    q, k, v, mask, kept, weights, y = residual
    dy = jax.lax.optimization_barrier(dy)
    dweights = drop(grouped_matmul(dy, transpose(v), jnp.float32), kept, rate)
    dscores = weights * (dweights - jnp.sum((dy * y).astype(jnp.float32), axis=-1, keepdims=True))
    if mask is not None:  # a fully masked query has uniform weights, and its scores get no gradient
        dscores = jnp.where(mask[:, None, None], dscores, 0)
    dscores = jax.lax.optimization_barrier(dscores.astype(q.dtype))
    used = drop(weights, kept, rate).astype(v.dtype)
    return grouped_matmul(dscores, k), _over_queries(dscores, q), _over_queries(used, dy), None, None


def _over_queries(scores: Float[Array, "batch kv_heads group q kv"], x: Float[Array, "batch kv_heads group q width"]):
    """Return scores^T @ x, summed over queries and group; transposes the narrow operand and the result, not the scores."""
    merged = lambda a: a.reshape(*a.shape[:2], -1, a.shape[-1])
    return matmul(transpose(merged(x)), merged(scores)).swapaxes(-1, -2)


# Devices and memory of the process: called by `start.start_process`, never on import ------------------------------------

MOST_CORES = 4  # each device holds a copy of the state
cores_are_devices = False  # whether `split_cores` chose the number of devices; a mesh may then use fewer of them


def configure() -> None:
    """Make each core a JAX device, and run programs of one device on the calling thread.

    Call it before JAX's first use of a device. Otherwise JAX runs a program of one device in a thread pool, in whose
    threads the C library returns large blocks to the kernel after every call (see `keep_freed_memory`).
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    split_cores()


def split_cores() -> None:
    """Make each core, up to MOST_CORES, a JAX device, unless the user has chosen devices or there are several processes.

    Two devices with half of the rows each are faster than one device on two cores (docs/cpu.md).
    """
    global cores_are_devices
    from jax._src import distributed  # not every version's public module has `is_initialized`

    chosen = jax.config.jax_num_cpu_devices != -1 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or distributed.global_state.client is not None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", min(cores(), MOST_CORES))
        cores_are_devices = True
    except RuntimeError:  # JAX has already initialised its devices
        return


def keep_freed_memory() -> bool:
    """Let the C library reuse the memory that a CPU program frees; return whether that is supported (glibc).

    Otherwise blocks of over 32 MiB are returned to the kernel after every step and allocated again page by page, zeroed.
    """
    if not traced_for():
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))


def return_freed_memory() -> None:
    """Drop compiled programs, and return to the kernel the unused memory that `keep_freed_memory` retains."""
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
