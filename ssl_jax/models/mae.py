"""The decoder of a masked autoencoder (He et al. 2022, section 3)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax.errors import UserError
from ssl_jax.models.dense import Dense
from ssl_jax.models.layers import Keys, Stack, TransformerSettings, norm_of
from ssl_jax.models.patches import Grid, inverse_of, pick, sincos2d


@dataclasses.dataclass(frozen=True)
class DecoderSettings(TransformerSettings):
    """The defaults are the paper's. `depth=0` is a linear layer on the encoder's tokens (SimMIM, Xie et al. 2022)."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    positions: str = "sincos2d"  # "sincos2d" or "learned"

    least_depth: ClassVar[int] = 0

    def __post_init__(self):
        super().__post_init__()
        if self.positions not in ("sincos2d", "learned"):
            raise UserError(f"positions={self.positions!r}: must be one of sincos2d, learned")
        if self.positions == "sincos2d" and self.width % 4:
            raise UserError(f"width={self.width}: must be a multiple of 4 for sincos2d positions")


class Decoder(nn.Module):
    """Map the encoder's tokens to predictions f32[batch, patches, outputs] for all patches of the grid.

    With `visible`, the encoder read only those patches, and mask tokens fill the other positions; without it, the encoder read
    all positions. The first `prefix` tokens precede the patches; they pass through the blocks and are dropped.
    """

    config: DecoderSettings
    grid: Grid
    outputs: int
    prefix: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens encoder_width"],
        *,
        visible: Int[Array, "batch kept"] | None = None,
        keys: Keys = None,
    ) -> Float[Array, "batch patches outputs"]:
        c, patches = self.config, self.grid[0] * self.grid[1]
        prediction = Dense(self.outputs, kernel_init=c.dense_init(), dtype=self.dtype, name="prediction")
        if c.depth == 0:
            return prediction(tokens[:, self.prefix :]).astype(jnp.float32)
        x = Dense(c.width, kernel_init=c.dense_init(), dtype=self.dtype, name="embedding")(tokens)
        first, x = x[:, : self.prefix], x[:, self.prefix :]
        if visible is not None:
            token = self.param("mask_token", nn.initializers.normal(0.02), (c.width,)).astype(x.dtype)
            places = inverse_of(visible, patches)
            x = pick(x, places, visible) + jnp.where(places[..., None] < 0, token, 0)
        if c.positions == "sincos2d":
            x = x + jnp.asarray(sincos2d(c.width, self.grid), x.dtype)
        x = jnp.concatenate([first, x], axis=1)
        if c.positions == "learned":  # the tokens before the patches get positions too
            x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(x.dtype)
        x, _ = Stack(c, dtype=self.dtype, name="stack")(x, keys=keys)
        x = norm_of(c, self.dtype, "final_norm")(x)
        return prediction(x[:, self.prefix :]).astype(jnp.float32)

    def flops_forward(self, encoder_width: int, kept: int | None = None) -> float:
        """Return the matmul FLOPs of one image's forward pass if the encoder read `kept` patches (default: all)."""
        c, patches = self.config, self.grid[0] * self.grid[1]
        if c.depth == 0:
            return 2 * patches * encoder_width * self.outputs
        embedding = 2 * ((patches if kept is None else kept) + self.prefix) * encoder_width * c.width
        return embedding + c.flops_forward(patches + self.prefix) + 2 * patches * c.width * self.outputs
