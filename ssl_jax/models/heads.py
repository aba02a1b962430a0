"""Heads between an encoder and a loss on representations: I-JEPA's predictor, projectors, prototypes, regression."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax.models.dense import Dense
from ssl_jax.models.layers import ACTIVATIONS, Stack, TransformerSettings, gelu, norm_of, truncated_normal
from ssl_jax.models.patches import Grid, sincos2d


class Predictor(nn.Module):
    """Predict the representations of target patches from those of context patches (Assran et al. 2023, section 3).

    A narrow transformer reads the context's tokens and one mask token per target, both with fixed positions.
    """

    config: TransformerSettings
    grid: Grid
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "batch kept dim"],
        places: Int[Array, "batch kept"],
        seen: Int[Array, "batch kept"],
        targets: Int[Array, "batch wanted"],
        real: Int[Array, "batch wanted"],
    ) -> Float[Array, "batch wanted {self.outputs}"]:
        """Predict `targets`. places, targets: patch numbers; seen, real: 0 for padding of context and targets."""
        c = self.config
        positions = jnp.asarray(sincos2d(c.width, self.grid), self.dtype)
        x = Dense(c.width, kernel_init=c.dense_init(), dtype=self.dtype, name="embedding")(context)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (c.width,)).astype(x.dtype)
        x = jnp.concatenate([x + positions[places], mask_token + positions[targets]], axis=1)
        x, _ = Stack(c, dtype=self.dtype, name="stack")(x, segments=jnp.concatenate([seen, real], axis=1))
        x = norm_of(c, self.dtype, "final_norm")(x)[:, places.shape[1] :]
        return Dense(self.outputs, kernel_init=c.dense_init(), dtype=self.dtype, name="output")(x)

    def flops_forward(self, inputs: int, kept: int, wanted: int) -> float:
        """Return the matmul FLOPs of a forward pass over `kept` context tokens of width `inputs` and `wanted` targets."""
        c = self.config
        return 2 * kept * inputs * c.width + c.flops_forward(kept + wanted) + 2 * wanted * c.width * self.outputs


class BatchNorm(nn.Module):
    """Batch normalisation in f32 with the moments of the given rows; no running averages."""

    affine: bool = True
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
        x = x.astype(jnp.float32)
        x = (x - jnp.mean(x, axis=0)) * jax.lax.rsqrt(jnp.var(x, axis=0) + self.eps)
        if self.affine:
            x = x * self.param("scale", nn.initializers.ones, x.shape[1:]) + self.param(
                "bias", nn.initializers.zeros, x.shape[1:]
            )
        return x


class Projector(nn.Module):
    """An MLP with layers of the widths `hidden` and `outputs`; the last layer has no bias.

    norm: "batch" (over the given rows) or None, after every hidden layer; last_norm: batch norm after the last layer too.
    """

    hidden: tuple[int, ...]
    outputs: int
    norm: str | None = "batch"
    last_norm: bool = False
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "rows dim"]) -> Float[Array, "rows {self.outputs}"]:
        x = x.astype(jnp.float32)
        for i, width in enumerate(self.hidden):
            x = Dense(width, use_bias=self.norm is None, kernel_init=he_normal, name=f"layer{i}")(x)
            if self.norm == "batch":
                x = BatchNorm(name=f"norm{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        x = Dense(self.outputs, use_bias=False, kernel_init=he_normal, name="output")(x)
        return BatchNorm(name="output_norm")(x) if self.last_norm else x

    def flops_forward(self, inputs: int) -> float:
        """Return the matmul FLOPs of a forward pass over one row of width `inputs`."""
        widths = (inputs, *self.hidden, self.outputs)
        return sum(2.0 * a * b for a, b in zip(widths, widths[1:], strict=False))


class PrototypeHead(nn.Module):
    """DINO's head (Caron et al. 2021, appendix C): an MLP, unit vectors, then their similarity to `prototypes` unit vectors.

    `vectors` returns the unit vectors, `scores` their similarities, whose kernel is weight-normalised with a gain of 1.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    dtype: Any = jnp.float32

    def setup(self):
        widths, init = [self.hidden] * (self.layers - 1) + [self.bottleneck], truncated_normal(0.02)
        self.mlp = [Dense(width, kernel_init=init, dtype=self.dtype, name=f"layer{i}") for i, width in enumerate(widths)]
        self.kernel = self.param("prototypes", truncated_normal(0.02), (self.bottleneck, self.prototypes))

    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows {self.prototypes}"]:
        return self.scores(self.vectors(x))

    def vectors(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows {self.bottleneck}"]:
        for layer in self.mlp[:-1]:
            x = gelu(layer(x))
        return unit(self.mlp[-1](x).astype(jnp.float32))

    def scores(self, vectors: Float[Array, "*rows {self.bottleneck}"]) -> Float[Array, "*rows {self.prototypes}"]:
        directions = unit(self.kernel, axis=0)
        return jnp.matmul(vectors.astype(self.dtype), directions.astype(self.dtype), preferred_element_type=jnp.float32)

    def flops_forward(self, inputs: int) -> float:
        """Return the matmul FLOPs of a forward pass over one row of width `inputs`."""
        widths = (inputs, *[self.hidden] * (self.layers - 1), self.bottleneck, self.prototypes)
        return sum(2.0 * a * b for a, b in zip(widths, widths[1:], strict=False))


class RegressionHead(nn.Module):
    """Dense layers with GELU between them, all but the last of twice the width (data2vec; fairseq's `regression_head`)."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows {self.width}"]:
        x = x.astype(jnp.float32)
        for i in range(self.layers - 1):
            x = gelu(Dense(2 * self.width, name=f"layer{i}")(x))
        return Dense(self.width, name="output")(x)


def he_normal(key, shape, dtype=jnp.float32):
    """Draw from N(0, 2 / fan_in) (He et al. 2015)."""
    return math.sqrt(2 / shape[0]) * jax.random.normal(key, shape, dtype)


def unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Scale vectors to length 1; those shorter than 1e-12 are divided by 1e-12 (torch's normalize)."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-12)
