"""The parts of every transformer: initialisers, norms, dropout, attention, MLP, block, stack.

Randomness is explicit: `keys` holds one key per example, or is None for a deterministic pass.
"""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import cpu, partition
from ssl_jax.errors import UserError
from ssl_jax.models import block_name
from ssl_jax.models.dense import Dense
from ssl_jax.models.kernels import KERNELS, attention
from ssl_jax.randomness import drop, keep, substream

Keys = Key[Array, "batch"] | None
Cache = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """The shape of a stack of blocks. The defaults are a pre-norm ViT's (Dosovitskiy et al. 2021)."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_width: int | None = None  # width of the MLP's hidden layer; default: 4 x width
    kv_heads: int | None = None  # fewer than heads: grouped-query attention
    head_width: int | None = None  # default: width / heads
    norm: str = "layer"  # "layer" or "rms"
    norm_eps: float = 1e-6
    norm_position: str = "pre"  # "pre" or "post" (BERT)
    norm_bias: bool = True
    bias: bool = True  # of all dense layers except query, key and value
    qkv_bias: bool = True
    activation: str = "gelu"  # "gelu", "gelu_tanh", "quick_gelu", "silu", "relu" or "relu_squared"
    gated: bool = False  # MLP with activation(gate(x)) * up(x): SwiGLU, GeGLU
    qk_norm: bool = False  # normalise queries and keys
    rope_theta: float | None = None  # base of rotary positions; None: no rotary positions
    rope_scaling: tuple | None = None  # for longer contexts: ("linear", factor) or ("llama3", factor, low, high, old length)
    window: int | None = None  # local attention: keys at most this many positions away
    global_every: int = 1  # with a window: block 0 and every n-th block attend globally (ModernBERT: 3)
    local_rope_theta: float | None = None  # rotary base of the local blocks; default: rope_theta
    first_attention_norm: bool = True  # False: no norm before the first block's attention (ModernBERT)
    layer_scale: float | None = None  # initial factor of each branch (CaiT, DINOv2); None: no layer scale
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # rate of stochastic depth at the last block; grows linearly from 0 at the first
    init: str = "xavier_uniform"  # "xavier_uniform", "normal", "trunc_normal" or "gpt2"
    init_std: float = 0.02  # standard deviation of "normal", "trunc_normal" and "gpt2"
    attention: str = "auto"  # kernel: "auto", "xla", "cudnn" (GPU) or "splash" (TPU)
    remat: str = "auto"  # "none", "full", "dots" (save matmul results) or "auto" (chosen by `plan.auto`, otherwise "none")
    scan: bool | str = "auto"  # compile one block and scan it over the depth; the parameter tree is the same

    least_depth: ClassVar[int] = 1

    def __post_init__(self):
        for name, least in (("width", 1), ("depth", self.least_depth), ("heads", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")
        for name, most in (("width", 2**18), ("depth", 1024), ("heads", 2**12), ("mlp_width", 2**20), ("head_width", 2**14)):
            value = getattr(self, name)
            if value is not None and not (value >= 1 or name == "depth") or (value or 0) > most:
                raise UserError(f"{name}={value}: must lie between 1 and {most}")
        for name in ("window", "global_every", "norm_eps", "init_std", "rope_theta", "local_rope_theta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: must be above 0")
        if self.head_width is None and self.width % self.heads:
            fits = [n for n in range(1, min(self.width, 64) + 1) if self.width % n == 0]
            raise UserError(f"heads={self.heads} does not divide width={self.width}; use one of {fits}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        if self.rope_theta is not None and self.width_of_head % 2:
            raise UserError(f"head width {self.width_of_head} is odd: rotary positions need an even one; set head_width")
        for name, choices in (
            ("norm", ("layer", "rms")), ("norm_position", ("pre", "post")), ("activation", tuple(ACTIVATIONS)),
            ("init", tuple(INITIALISERS)), ("remat", ("auto", "none", "full", "dots")), ("scan", ("auto", True, False)),
            ("attention", KERNELS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(map(str, choices))}")
        if self.rope_scaling is not None and (self.rope_scaling[:1], len(self.rope_scaling)) not in ROPE_SCALINGS:
            raise UserError(
                f'rope_scaling={self.rope_scaling}: must be ("linear", factor) or ("llama3", factor, low, high, old length)'
            )
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must lie in [0, 1)")

    @property
    def width_of_head(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def width_of_mlp(self) -> int:
        return self.mlp_width or 4 * self.width

    def dense_init(self, *, fused: int = 1, residual: bool = False) -> Callable:
        """Return the initialiser of a dense kernel, one of `fused` that count as one matrix; `residual`: it ends a branch."""
        return INITIALISERS[self.init](self, fused, residual)

    def flops_forward(self, tokens: int, *, kv_tokens: int | None = None, causal: bool = False, cross: bool = False) -> float:
        """Return the matmul FLOPs of a forward pass on one sequence (a multiply-add is two; causal attention counts half)."""
        hd, h, kv = self.width_of_head, self.heads, self.kv_heads or self.heads
        kv_tokens = kv_tokens or tokens
        project = 2 * tokens * self.width * hd * (2 * h + 2 * kv)
        pairs = tokens * kv_tokens / (2 if causal else 1)
        mlp = 2 * tokens * self.width * self.width_of_mlp * (3 if self.gated else 2)
        return self.depth * (
            project + 2 * 2 * pairs * h * hd + mlp + (project + 4 * tokens * kv_tokens * h * hd if cross else 0)
        )


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x * Phi(x), computed with erf as in PyTorch, which is cheaper than erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * (2**-0.5)))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}


def xavier_uniform(fused: int = 1) -> Callable:
    """Return U(+-sqrt(6 / (fan_in + fused * fan_out))): `fused` kernels are initialised like the reference's single matrix."""

    def init(key, shape, dtype=jnp.float32):
        bound = math.sqrt(6 / (shape[0] + fused * shape[1]))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _gpt2(config, fused, residual):
    """Return N(0, std), with std / sqrt(2 depth) at the end of a residual branch (Radford et al. 2019, section 2.3)."""
    return nn.initializers.normal(config.init_std / math.sqrt(2 * config.depth) if residual else config.init_std)


INITIALISERS: dict[str, Callable] = {
    "xavier_uniform": lambda config, fused, residual: xavier_uniform(fused),
    "normal": lambda config, fused, residual: nn.initializers.normal(config.init_std),
    "trunc_normal": lambda config, fused, residual: truncated_normal(config.init_std),
    "gpt2": _gpt2,
}


def truncated_normal(std: float) -> Callable:
    """Return N(0, std) truncated to [-2, 2], whatever std, as torch.nn.init.trunc_normal_: a small std is not truncated."""
    return lambda key, shape, dtype=jnp.float32: std * jax.random.truncated_normal(key, -2 / std, 2 / std, shape, dtype)


def dropout(x: Float[Array, "batch *rest"], rate: float, keys: Keys, name: str) -> Float[Array, "batch *rest"]:
    """Apply inverted dropout; `name` selects the random stream of a site within a block."""
    if keys is None or rate == 0.0:
        return x
    return drop(x, keep(substream(keys, name), rate, x.shape[1:]), rate)


def drop_path(x: Float[Array, "batch *rest"], rate: float | Array, keys: Keys, name: str) -> Float[Array, "batch *rest"]:
    """Apply stochastic depth: drop a residual branch for whole examples (Huang et al. 2016)."""
    if keys is None or (isinstance(rate, float) and rate == 0.0):
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(substream(keys, name))
    return jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x / (1 - rate), 0).astype(x.dtype)


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis, in f32; the variance is E[(x - mean)^2], not E[x^2] - E[x]^2."""

    kind: str = "layer"
    eps: float = 1e-6
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * self.param("scale", nn.initializers.ones, x.shape[-1:])
        if self.kind == "layer" and self.bias:
            y = y + self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return y.astype(self.dtype)


def norm_of(config: TransformerSettings, dtype: Any, name: str | None = None) -> Norm:
    return Norm(config.norm, config.norm_eps, config.norm_bias, dtype, name=name)


ROPE_SCALINGS = ((("linear",), 2), (("llama3",), 5))


def rope_frequencies(half: int, theta: float | Array, scaling: tuple | None = None) -> Float[Array, "{half}"]:
    """Return theta^(-i / half), scaled down for contexts longer than the training context.

    "linear": divide all frequencies by `factor` (Chen et al. 2023). "llama3": keep those with wavelengths below old
    length / high, divide those with wavelengths above old length / low by `factor`, and interpolate in between (Grattafiori et
    al. 2024, and its published code).
    """
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequency
    if scaling[0] == "linear":
        return frequency / scaling[1]
    _, factor, low, high, length = scaling
    periods = length * frequency / (2 * math.pi)  # within the old context
    share = jnp.clip((periods - low) / (high - low), 0.0, 1.0)
    return (1 - share) * frequency / factor + share * frequency


def rotate(
    x: Float[Array, "batch heads time width"],
    positions: Int[Array, "#batch time"],
    theta: float | Array,
    scaling: tuple | None = None,
):
    """Apply rotary position embedding in the half-split layout of LLaMA's published weights (Su et al. 2021)."""
    half = x.shape[-1] // 2
    frequency = rope_frequencies(half, theta, scaling)
    angle = positions[:, None, :, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self- or cross-attention; with `cache`, decodes the next chunk.

    `segments` are the queries' and, unless `key_segments` are given, the keys'.
    """

    config: TransformerSettings
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        *,
        context: Float[Array, "batch kv dim"] | None = None,
        keys: Keys = None,
        positions: Int[Array, "#batch time"] | None = None,
        segments: Int[Array, "#batch time"] | None = None,
        key_segments: Int[Array, "#batch time"] | None = None,
        context_segments: Int[Array, "#batch kv"] | None = None,
        prefix: Int[Array, "#batch"] | None = None,
        bias: Float[Array, "heads time kv"] | None = None,
        window: int | Array | None = None,
        theta: float | Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch time dim"], Cache | None]:
        c, width = self.config, self.config.width_of_head
        kv_heads = c.kv_heads or c.heads
        source = x if context is None else context

        def project(name, value, heads):
            init = c.dense_init(fused=3 if context is None else 1)
            y = Dense(heads * width, use_bias=c.qkv_bias, kernel_init=init, dtype=self.dtype, name=name)(value)
            return y.reshape(*y.shape[:-1], heads, width).swapaxes(1, 2)

        q, k, v = project("query", x, c.heads), project("key", source, kv_heads), project("value", source, kv_heads)
        if c.qk_norm:
            q, k = norm_of(c, self.dtype, "query_norm")(q), norm_of(c, self.dtype, "key_norm")(k)
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        if theta is not None and context is None:
            q, k = rotate(q, positions, theta, c.rope_scaling), rotate(k, positions, theta, c.rope_scaling)
        kv_positions = positions if context is None else jnp.arange(source.shape[1])[None]
        own = segments if key_segments is None else key_segments
        kv_segments = own if context is None else context_segments
        if cache is not None:  # write the new keys after the old ones; unwritten positions lie in the future
            start = cache["length"]
            write = jax.lax.dynamic_update_slice_in_dim
            k = write(cache["key"], k.astype(cache["key"].dtype), start, axis=2)
            v = write(cache["value"], v.astype(cache["value"].dtype), start, axis=2)
            written = {"key": k, "value": v, "length": start + x.shape[1]}
            if "segments" in cache:  # the earlier chunks contain padding
                kv_segments = write(cache["segments"], segments, start, axis=1)
                written["segments"] = kv_segments
            cache, kv_positions = written, jnp.arange(k.shape[2])[None]
        y = attention(
            q, k, v, q_positions=positions, kv_positions=kv_positions, kernel=c.attention,
            causal=self.causal and context is None, window=window, q_segments=segments, kv_segments=kv_segments,
            prefix=prefix, bias=bias, cached=cache is not None, dropout=c.attention_dropout, keys=keys,
        )  # fmt: skip
        y = y.swapaxes(1, 2).reshape(*x.shape[:2], c.heads * width)
        init = c.dense_init(residual=True)
        return Dense(c.width, use_bias=c.bias, kernel_init=init, dtype=self.dtype, name="out")(y), cache


class MLP(nn.Module):
    config: TransformerSettings
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"], keys: Keys = None) -> Float[Array, "... dim"]:
        c, activation = self.config, ACTIVATIONS[self.config.activation]

        def dense(name, width, residual=False):
            init = c.dense_init(residual=residual)
            return Dense(width, use_bias=c.bias, kernel_init=init, dtype=self.dtype, name=name)

        up = dense("up", c.width_of_mlp)(x)
        y = activation(dense("gate", c.width_of_mlp)(x)) * up if c.gated else activation(up)
        return dense("down", c.width, residual=True)(y)


class Block(nn.Module):
    """Attention and MLP as residual branches; with `cross`, cross-attention to a context between them.

    Return the block's output, the new cache and, with `branches`, the output of each branch before the residual by name
    ("attention", "cross", "mlp"). What differs between the blocks of a stack (`drop_rate`, `window`, `theta`) are
    attributes because remat would trace arguments, and fused attention needs a static window.
    """

    config: TransformerSettings
    causal: bool = False
    cross: bool = False
    attention_norm: bool = True
    dtype: Any = jnp.float32
    branches: bool = False
    drop_rate: float = 0.0
    window: int | None = None
    theta: float | None = None

    @nn.compact
    def __call__(self, x, *, drop_rate=None, keys: Keys = None, context=None, context_segments=None, **attention):
        c = self.config
        drop_rate = self.drop_rate if drop_rate is None else drop_rate
        attention = dict(window=self.window, theta=self.theta) | attention
        cache, added = attention.pop("cache", None), {}

        def branch(name, function, y):
            norm = norm_of(c, self.dtype, f"{name}_norm") if (name != "attention" or self.attention_norm) else (lambda v: v)
            z = function(norm(y) if c.norm_position == "pre" else y)
            if c.layer_scale is not None:
                init = nn.initializers.constant(c.layer_scale)
                z = z * self.param(f"{name}_scale", init, (c.width,)).astype(z.dtype)
            z = drop_path(dropout(z, c.dropout, keys, name), drop_rate, keys, f"{name}_path")
            if self.branches:
                added[name] = z
            z = y + z
            return z if c.norm_position == "pre" else norm(z)

        def self_attention(y):
            nonlocal cache
            y, cache = Attention(c, self.causal, self.dtype, name="attention")(y, keys=keys, cache=cache, **attention)
            return y

        def cross_attention(y):
            module = Attention(c, False, self.dtype, name="cross")
            segments = None if context_segments is None else jnp.ones(y.shape[:2], jnp.int32)
            return module(y, context=context, keys=None if keys is None else substream(keys, "cross"), segments=segments,
                          context_segments=context_segments)[0]  # fmt: skip

        x = branch("attention", self_attention, x)
        if self.cross:
            x = branch("cross", cross_attention, x)
        x = branch("mlp", MLP(c, self.dtype, name="mlp"), x)
        return x, cache, added


class Stack(nn.Module):
    """A stack of `depth` blocks. Return the last output and the output of each block by name: "block00", "block01", ...

    `caches` (a list, one per block) enable incremental decoding; the new ones are returned under "caches". `branches` adds
    the output of each branch before the residual, "block00/attention", "block00/mlp", ... (data2vec's targets: Baevski et al.
    2022, section 3.3).
    With `config.scan`, the blocks' parameters are stacked inside the step and one compiled block is scanned over them; the
    parameter tree does not change.
    """

    config: TransformerSettings
    causal: bool = False
    cross: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        *,
        keys: Keys = None,
        caches: list | None = None,
        branches: bool = False,
        **options,
    ):
        c = self.config
        block_class = self._remat(Block)
        blocks = [
            block_class(
                c, self.causal, self.cross, c.first_attention_norm or i > 0, self.dtype, branches, **self._layer(i),
                name=block_name(i),
            )
            for i in range(c.depth)
        ]  # fmt: skip
        if c.scan is True and caches is None and not self.is_initializing():
            return self._scan(x, keys, branches, options)
        outputs, new_caches = {}, []
        for i, block in enumerate(blocks):
            cache = None if caches is None else caches[i]
            x = cpu.materialize_cotangent(partition.rows(x))
            own_keys = None if keys is None else self._fold(keys, i)
            x, cache, added = block(x, keys=own_keys, cache=cache, **options)
            outputs |= _named(i, x, added)
            new_caches.append(cache)
        if caches is not None:
            outputs["caches"] = new_caches
        return partition.rows(x), outputs

    def _layer(self, i: int) -> dict:
        """Return the settings that differ between blocks: drop path, attention window and rotary base."""
        c = self.config
        local = c.window is not None and i % c.global_every != 0 if c.global_every > 1 else c.window is not None
        theta = c.rope_theta if not local or c.local_rope_theta is None else c.local_rope_theta
        return dict(drop_rate=c.drop_path * i / max(c.depth - 1, 1), window=c.window if local else None, theta=theta)

    @staticmethod
    def _fold(keys, i):
        return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)

    def _remat(self, block):
        if self.config.remat in ("none", "auto"):
            return block
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.config.remat == "dots" else None
        return nn.remat(block, policy=policy)

    def _scan(self, x, keys, branches, options):
        c = self.config
        if not c.first_attention_norm:
            raise UserError(
                "scan=True: needs equal blocks, but first_attention_norm=False makes the first one differ; set scan=False"
            )
        params = self.variables["params"]
        stacked = jax.tree.map(lambda *p: jnp.stack(p), *[params[block_name(i)] for i in range(c.depth)])
        layers = [self._layer(i) for i in range(c.depth)]
        same = {name: value for name, value in layers[0].items() if all(layer[name] == value for layer in layers)}
        everywhere = jnp.iinfo(jnp.int32).max  # the window of a global block
        varying = {
            name: jnp.array([everywhere if layer[name] is None else layer[name] for layer in layers])
            for name in layers[0] if name not in same
        }  # fmt: skip
        block = Block(c, self.causal, self.cross, True, self.dtype, branches, **same, parent=None)

        def body(x, layer):
            p, i, vary = layer
            y, _, added = block.apply(
                {"params": p}, partition.rows(x), keys=None if keys is None else self._fold(keys, i), **vary, **options
            )
            y = partition.rows(y)
            return y, (y, added)

        if c.remat not in ("none", "auto"):
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        x, every = jax.lax.scan(body, x, (stacked, jnp.arange(c.depth), varying))
        outputs = {}
        for i in range(c.depth):
            outputs |= _named(i, *jax.tree.map(operator.itemgetter(i), every))
        return x, outputs


def _named(i: int, output: Array, branches: dict[str, Array]) -> dict[str, Array]:
    """Return block i's output and branches under the names of a stack's intermediates."""
    return {block_name(i): output} | {f"{block_name(i)}/{name}": value for name, value in branches.items()}
