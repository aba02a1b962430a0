"""The choice of an attention kernel: plain XLA, cuDNN's flash attention on a GPU, or splash attention on a TPU."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import partition, target
from ssl_jax.errors import UserError
from ssl_jax.models.attention import allowed, attend

KERNELS = ("auto", "xla", "cudnn", "splash")
SHORTEST = 128  # keys; with fewer, the scores are small and XLA's fused softmax is as fast as a flash kernel
SPLASH_BLOCK = 128  # sequences are padded to multiples of this length

_log = logging.getLogger("ssl_jax")


def attention(
    q: Float[Array, "batch heads q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    *,
    q_positions: Int[Array, "#batch q"],
    kv_positions: Int[Array, "#batch kv"],
    kernel: str = "auto",
    causal: bool = False,
    window: int | Array | None = None,
    q_segments: Int[Array, "#batch q"] | None = None,
    kv_segments: Int[Array, "#batch kv"] | None = None,
    prefix: Int[Array, "#batch"] | None = None,
    bias: Float[Array, "heads q kv"] | None = None,
    cached: bool = False,
    dropout: float = 0.0,
    keys: Key[Array, "batch"] | None = None,
) -> Float[Array, "batch heads q width"]:
    """Compute `attend` under the restrictions of `allowed`, with the kernel that suits device, dtype and sequence.

    A fused kernel applies `causal` and `window` to array indices instead of positions, so that positions must increase by one
    within a segment, as in packed documents. `cached` keys and a `bias` always use XLA.
    Raise UserError if `kernel` names a kernel that does not support the request.
    """
    rules = dict(causal=causal, window=window, q_segments=q_segments, kv_segments=kv_segments)
    if bias is not None and kernel not in ("auto", "xla"):
        raise UserError(f'attention="{kernel}": does not support relative positions (a bias); use "auto" or "xla"')
    if not cached and bias is None:
        here, mesh = target.current(), jax.sharding.get_abstract_mesh()
        chosen, why = choose(
            kernel, here.platform, q.dtype, q.shape[2], k.shape[2], q.shape[3], unsplit=here.count > 1 and mesh.empty,
            dropout=bool(dropout) and keys is not None, prefix=prefix is not None,
            traced_window=window is not None and not isinstance(window, int),
        )  # fmt: skip
        _tell(chosen, why)
        if chosen == "cudnn":
            one_sided = window is None or (causal and isinstance(window, int))
            if q_segments is None and prefix is None and one_sided:
                return cudnn(q, k, v, causal=causal, window=window)
            return cudnn(q, k, v, mask=allowed(q_positions, kv_positions, **rules, prefix=prefix))
        if chosen == "splash":
            run = lambda q, k, v, q_segments, kv_segments: splash(
                q, k, v, causal=causal, window=window, q_segments=q_segments, kv_segments=kv_segments
            )
            return partition.by_rows_and_heads(run, q, k, v, q_segments, kv_segments)
    mask = allowed(q_positions, kv_positions, **rules, prefix=prefix)
    return attend(q, k, v, mask=mask, bias=bias, dropout=dropout, keys=keys)


def choose(
    kernel: str, platform: str, dtype: Any, queries: int, keys: int, width: int, *,
    unsplit: bool = False, dropout: bool = False, prefix: bool = False, traced_window: bool = False,
) -> tuple[str, str]:  # fmt: skip
    """Return (kernel, reason): the kernel that is named, or for "auto" the fastest that applies.

    unsplit: there are several devices but no mesh, so that a kernel cannot be split over them.
    """
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    hindrances = {
        "cudnn": [
            (platform != "gpu", f"runs on a GPU, not on {platform}"),
            (not half, f"computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}"),
            (width % 8 or width > 128, f"needs a head width of 8, 16 ... 128, not {width}"),
            (dropout, "has no attention dropout here"),
        ],
        "splash": [
            (platform != "tpu", f"runs on a TPU, not on {platform}"),
            (dropout, "has no attention dropout"),
            (prefix, "has no prefix mask"),
            (traced_window, "needs blocks with one window (scan=False)"),
            (unsplit, "is split over several devices only under a mesh (jax.set_mesh)"),
        ],
    }
    reasons = {name: next((text for hinders, text in found if hinders), None) for name, found in hindrances.items()}
    if kernel in reasons:
        if reasons[kernel] is not None:
            raise UserError(f'attention="{kernel}": {reasons[kernel]}; use "auto" or "xla"')
        return kernel, "asked for"
    if kernel == "xla":
        return kernel, "asked for"
    fused = {"gpu": "cudnn", "tpu": "splash"}.get(platform)
    if fused is None:
        return "xla", f"on {platform}"
    if keys < SHORTEST:
        return "xla", f"{keys} keys are few"
    if reasons[fused] is not None:
        return "xla", f"{fused} {reasons[fused]}"
    return fused, f"{queries} queries, {keys} keys of width {width}"


@functools.cache
def _tell(chosen: str, why: str) -> None:
    """Log each choice once per process."""
    _log.info("attention kernel: %s (%s)", chosen, why)


def cudnn(
    q: Float[Array, "batch heads q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    implementation: str = "cudnn",
) -> Float[Array, "batch heads q width"]:
    """Compute cuDNN's fused attention. A `mask` bool[#batch, q, kv] replaces all other restrictions.

    The gradient supports only even lengths; odd ones are padded by one position, which no query attends to. A window without a
    mask needs `causal`. implementation="xla" computes the same without a GPU.
    """
    batch, _, queries, _ = q.shape
    keys = k.shape[2]
    odd = queries % 2, keys % 2
    options: dict[str, Any] = dict(is_causal=causal, local_window_size=None if window is None else (window, 0))
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, odd[0]), (0, odd[1])))
        options = dict(mask=jnp.broadcast_to(mask[:, None], (batch, 1, *mask.shape[1:])))
    elif any(odd):
        lengths = lambda n: jnp.full((batch,), n, jnp.int32)
        options |= dict(query_seq_lengths=lengths(queries), key_value_seq_lengths=lengths(keys))
    turn = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0))).swapaxes(1, 2)
    y = jax.nn.dot_product_attention(turn(q), turn(k), turn(v), implementation=implementation, **options)
    return y.swapaxes(1, 2)[:, :, :queries]


def splash(
    q: Float[Array, "batch heads q width"],
    k: Float[Array, "batch kv_heads kv width"],
    v: Float[Array, "batch kv_heads kv width"],
    *,
    causal: bool = False,
    window: int | None = None,
    q_segments: Int[Array, "#batch q"] | None = None,
    kv_segments: Int[Array, "#batch kv"] | None = None,
    interpret: bool = False,
) -> Float[Array, "batch heads q width"]:
    """Compute Pallas' splash attention on sequences padded to whole blocks. interpret=True runs it without a TPU, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    padded = tuple(-(-n // SPLASH_BLOCK) * SPLASH_BLOCK for n in (queries, keys))
    extend = lambda x, n: jnp.pad(x, ((0, 0), (0, 0), (0, n - x.shape[2]), (0, 0)))
    if window is not None:
        mask = masks.LocalMask(padded, (window, 0 if causal else window), 0)
    else:
        mask = masks.CausalMask(padded) if causal else masks.FullMask(padded)
    segments = None
    if q_segments is not None or padded != (queries, keys):  # padding gets a separate segment
        own = lambda s, n: jnp.zeros((1, n), jnp.int32) if s is None else s
        pad = lambda s, n: jnp.pad(s, ((0, 0), (0, n - s.shape[1])), constant_values=-1)
        sides = [pad(own(s, n), m) for s, n, m in zip((q_segments, kv_segments), (queries, keys), padded, strict=True)]
        segments = kernels.SegmentIds(*(jnp.broadcast_to(s, (batch, s.shape[1])) for s in sides))
    make = kernels.make_splash_mha if k.shape[1] > 1 or heads == 1 else kernels.make_splash_mqa
    with jax.ensure_compile_time_eval():
        kernel = make(masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret)
    k, v = extend(k, padded[1]), extend(v, padded[1])
    if make is kernels.make_splash_mqa:
        k, v = k[:, 0], v[:, 0]
    q = extend((q * width**-0.5).astype(q.dtype), padded[0])
    y = jax.vmap(kernel)(q, k, v, segments) if segments is not None else jax.vmap(kernel)(q, k, v)
    return y[:, :, :queries].astype(v.dtype)
