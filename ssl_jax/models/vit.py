"""The vision transformer (Dosovitskiy et al. 2021), for any image size, patch size and number of channels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import config as config_module
from ssl_jax.errors import UserError
from ssl_jax.models import block_number
from ssl_jax.models.dense import Dense
from ssl_jax.models.layers import MLP, Attention, Keys, Stack, TransformerSettings, dropout, norm_of
from ssl_jax.models.patches import Grid, inverse_of, patchify, pick, relative_index, resample, resize_kernel, sincos2d, take
from ssl_jax.task import DataInfo

# Width, depth, heads, patch size, MLP width (ViT: Dosovitskiy et al. 2021, table 1; Ti: Touvron et al. 2021, table 1;
# g: Zhai et al. 2022, table 2).
SIZES: dict[str, dict[str, int]] = {
    name: dict(zip(("width", "depth", "heads", "patch_size", "mlp_width"), values, strict=True))
    for name, values in {
        "Ti": (192, 12, 3, 16, 768),
        "S": (384, 12, 6, 16, 1536),
        "B": (768, 12, 12, 16, 3072),
        "L": (1024, 24, 16, 16, 4096),
        "H": (1280, 32, 16, 14, 5120),
        "g": (1408, 40, 16, 14, 6144),
    }.items()
}
POSITIONS = ("sincos2d", "learned", "relative", "none")
POOLINGS = ("mean", "cls", "attention")


@dataclasses.dataclass(frozen=True)
class ViTSettings(TransformerSettings):
    """A vision transformer's shape. In a config file `size="B"` fills width, depth, heads, mlp_width and patch_size."""

    patch_size: int | tuple = 16  # pixels, or (height, width)
    class_token: bool = True
    registers: int = 0  # additional tokens without a position (Darcet et al. 2024)
    mask_token: bool = False  # a learned token that replaces hidden patches
    positions: str = "sincos2d"  # or "learned" (also for the class token), "relative" (BEiT's bias for all blocks), "none"
    pooling: str = "mean"  # of the representation "pooled": "mean" of the patch tokens, "cls" or "attention" (SigLIP's head)
    pooler: bool = False  # tanh(dense(pooled)), as in BERT and the original ViT
    norm_pooled: bool = False  # the final norm after pooling instead of before (MAE's fine-tuning: "fc_norm")
    patch_bias: bool = True
    crop: bool = False  # ignore edge pixels that fill no whole patch (SigLIP: 384 = 27 x 14 + 6)
    pre_norm: bool = False  # add a norm before the first block (CLIP)

    def __post_init__(self):
        super().__post_init__()
        size = self.patch_size
        if not (isinstance(size, int) or (len(size) == 2 and all(isinstance(n, int) for n in size))) or min(self.patch) < 1:
            raise UserError(f"patch_size={size}: must be a number of pixels or a pair (height, width)")
        for name, choices in (("positions", POSITIONS), ("pooling", POOLINGS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if self.positions == "sincos2d" and self.width % 4:
            raise UserError(f"width={self.width}: must be a multiple of 4 for sincos2d positions")
        if self.pooling == "cls" and not self.class_token:
            raise UserError('pooling="cls": needs class_token=True')
        if self.positions == "relative" and (self.registers or not self.class_token):
            raise UserError('positions="relative": needs class_token=True and registers=0')
        if self.registers < 0:
            raise UserError(f"registers={self.registers}: must be at least 0")

    @property
    def patch(self) -> Grid:
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else tuple(self.patch_size)

    @property
    def prefix(self) -> int:
        """Return the number of tokens before the patches."""
        return int(self.class_token) + self.registers

    @classmethod
    def read(cls, section: Any, path: str = "model") -> "ViTSettings":
        """Return the settings of a config section; `size` fills in the shape, and keys that are set take precedence."""
        section = dict(section or {})
        size = section.pop("size", None)
        if size is not None and size not in SIZES:
            raise UserError(f"{path}.size={size!r}: must be one of {', '.join(SIZES)}")
        sized = dict(SIZES[size]) if size else {}
        if "width" in section:
            sized.pop("mlp_width", None)
        return config_module.read(cls, sized | section, path)


class ViT(nn.Module):
    """A vision transformer.

    Return the tokens f32[batch, prefix + patches, width] after the final norm (prefix: class token, then registers) and
    the intermediates by name: the output of each block ("block00", ...) and "pooled".

    The positions belong to the grid of `image_size`. For images of other sizes, learned and sine-cosine positions are
    interpolated bicubically, so that one encoder takes views of several sizes (Caron et al. 2021).
    """

    config: ViTSettings
    image_size: Grid
    channels: int
    dtype: Any = jnp.float32

    @property
    def grid(self) -> Grid:
        return self.image_size[0] // self.config.patch[0], self.image_size[1] // self.config.patch[1]

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        visible: Int[Array, "batch kept"] | None = None,
        mask: Bool[Array, "batch patches"] | None = None,
        segments: Int[Array, "batch kept"] | None = None,
        branches: bool = False,
        keys: Keys = None,
    ) -> tuple[Float[Array, "batch tokens dim"], dict[str, Float[Array, "..."]]]:
        """Encode whole images, or only the patches `visible`.

        visible: the patches to encode, distinct in each row; the others are dropped. mask: the patches to replace by the
        learned mask token. Positions are those of the whole image in both cases. segments: a number for each encoded
        patch; patches attend only to patches with the same number; 0 is padding, which "pooled" excludes; the tokens
        before the patches belong to segment 1. branches: also return the output of each branch (`layers.Stack`).

        Raise UserError if the patch size does not divide the images, unless `config.crop` is set.
        """
        c, batch = self.config, images.shape[0]
        grid = self.grid_of(images.shape[1:3])
        pixels = patchify(images.astype(self.dtype), c.patch)
        if visible is not None:  # before the embedding: the same result with less work and no gradient
            pixels = take(pixels, visible)
        embed = Dense(c.width, use_bias=c.patch_bias, kernel_init=c.dense_init(), dtype=self.dtype, name="patch_embedding")
        x = embed(pixels)
        if c.mask_token:
            token = self.param("mask_token", nn.initializers.normal(0.02), (c.width,)).astype(x.dtype)
            x = x if mask is None else jnp.where(mask[..., None], token, x)

        class_position, positions = self._positions(grid)
        if positions is not None:
            positions = positions[None]
            if visible is not None:
                whole = jnp.broadcast_to(positions, (batch, *positions.shape[1:]))
                learned = c.positions == "learned"
                positions = pick(whole, visible, inverse_of(visible, whole.shape[1])) if learned else take(whole, visible)
            x = x + positions.astype(x.dtype)
        prefix = []
        if c.class_token:
            prefix.append(self.param("class_token", nn.initializers.normal(0.02), (1, c.width)) + class_position)
        if c.registers:
            prefix.append(self.param("registers", nn.initializers.normal(0.02), (c.registers, c.width)))
        if prefix:
            first = jnp.concatenate(prefix).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (batch, *first.shape)), x], axis=1)

        x = dropout(x, c.dropout, keys, "embedding")
        if c.pre_norm:
            x = norm_of(c, self.dtype, "pre_norm")(x)
        options = {} if c.positions != "relative" else {"bias": self._relative(grid, visible is None)}
        if segments is not None:
            segments = jnp.pad(segments, ((0, 0), (c.prefix, 0)), constant_values=1)
        x, intermediates = Stack(c, dtype=self.dtype, name="stack")(
            x, keys=keys, segments=segments, branches=branches, **options
        )
        if not c.norm_pooled:
            x = norm_of(c, self.dtype, "final_norm")(x)
        return x, intermediates | {"pooled": self._pool(x, None if segments is None else segments > 0)}

    def grid_of(self, size: Grid) -> Grid:
        """Return the rows and columns of patches of an image of `size` = (height, width)."""
        (height, width), (p, q) = size, self.config.patch
        if (height % p or width % q) and not self.config.crop or height < p or width < q:
            raise UserError(f"an image of {height} x {width}: patches of {p} x {q} do not divide it; use multiples of these")
        return height // p, width // q

    def _positions(self, grid: Grid):
        """Return (position of the class token, positions of the patches f32[rows * columns, width] or None) for a grid."""
        c = self.config
        if c.positions == "sincos2d":
            table = sincos2d(c.width, self.grid)
            return 0.0, jnp.asarray(table if grid == self.grid else resample(table, self.grid, grid))
        if c.positions == "learned":
            shape = (self.patches + int(c.class_token), c.width)
            table = self.param("positions", nn.initializers.normal(0.02), shape)
            first, patches = (table[:1], table[1:]) if c.class_token else (0.0, table)
            return first, patches if grid == self.grid else resample(patches, self.grid, grid)
        return 0.0, None

    def _relative(self, grid: Grid, whole: bool) -> Float[Array, "heads tokens tokens"]:
        """Return the relative-position bias of the attention scores of every block (BEiT's shared bias; data2vec)."""
        if grid != self.grid or not whole:
            raise UserError('positions="relative": needs whole images of one size; use "sincos2d" or "learned"')
        index = relative_index(grid)
        table = self.param("relative_positions", nn.initializers.zeros, (index.max() + 1, self.config.heads))
        return jnp.moveaxis(table[index], -1, 0)

    def _pool(self, x, real: Bool[Array, "batch tokens"] | None):
        c = self.config
        if c.pooling == "mean":
            values, weight = x[:, c.prefix :], None if real is None else real[:, c.prefix :, None]
            pooled = jnp.mean(values, axis=1, dtype=jnp.float32, where=weight).astype(x.dtype)
        elif c.pooling == "cls":
            pooled = x[:, 0]
        else:
            pooled = AttentionPooling(c, self.dtype, name="pooling")(x, real)
        if c.norm_pooled:
            pooled = norm_of(c, self.dtype, "pooled_norm")(pooled)
        if c.pooler:
            pooled = jnp.tanh(Dense(c.width, kernel_init=c.dense_init(), dtype=self.dtype, name="pooler")(pooled))
        return pooled

    def representations(
        self, tokens: Float[Array, "batch tokens width"], intermediates: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return f32 features: "pooled", "cls", "tokens" (of patches), "mean" (of these), "block00/mean", "block00/cls", ..."""
        c = self.config
        named = {"pooled": intermediates["pooled"], "tokens": tokens[:, c.prefix :]}
        for name, value in {"": tokens, **{k: v for k, v in intermediates.items() if block_number(k) is not None}}.items():
            slash = f"{name}/" if name else ""
            named[f"{slash}mean"] = jnp.mean(value[:, c.prefix :].astype(jnp.float32), axis=1)
            if c.class_token:
                named[f"{slash}cls"] = value[:, 0]
        return {name: value.astype(jnp.float32) for name, value in named.items()}

    def for_size(self, size: Grid) -> "ViT":
        """Return this encoder for images of `size` = (height, width); `adapt` converts the parameters."""
        return vit_for(self.config, (*size, self.channels), self.dtype)

    def adapt(self, params: Mapping[str, Any], grid: Grid | None = None, patch: Grid | None = None) -> dict[str, Any]:
        """Return this encoder's parameters from those of one trained on a `grid` of patches of `patch` pixels.

        Learned positions are interpolated (`patches.resample`), as in MAE's fine-tuning and DINOv2; sine-cosine ones are not
        parameters. The patch embedding is resized (`patches.resize_kernel`). grid: by default this encoder's if the number
        of positions fits, else a square; patch: by default this encoder's. Raise UserError if the positions do not form such a
        grid, or if they are relative positions of another grid.
        """
        c, params = self.config, dict(params)
        if patch not in (None, c.patch):
            embedding = params["patch_embedding"]
            params["patch_embedding"] = {**embedding, "kernel": resize_kernel(embedding["kernel"], patch, c.patch)}
        if "relative_positions" in params and grid not in (None, self.grid):
            raise UserError(
                f"relative positions of {grid[0]} x {grid[1]} patches do not fit {self.grid[0]} x {self.grid[1]} and cannot be "
                "interpolated; use the original image and patch size"
            )
        if c.positions != "learned" or "positions" not in params:
            return params
        table, first = np.asarray(params["positions"]), int(c.class_token)
        count = len(table) - first
        grid = grid or (self.grid if count == self.patches else (round(count**0.5),) * 2)
        if count != grid[0] * grid[1]:
            raise UserError(f"{count} learned positions do not form a grid of {grid[0]} x {grid[1]} patches")
        if grid != self.grid:
            image = resample(np.asarray(table[first:], np.float64), grid, self.grid)
            params["positions"] = np.concatenate([table[:first], image.astype(np.float32)])
        return params

    def flops_forward(self, kept: int | None = None) -> float:
        """Return the matmul FLOPs of one image's forward pass with `kept` visible patches (default: all)."""
        c, kept = self.config, self.patches if kept is None else kept
        pixels = c.patch[0] * c.patch[1] * self.channels
        return 2 * kept * pixels * c.width + c.flops_forward(kept + c.prefix)


class AttentionPooling(nn.Module):
    """A learned query attends to all tokens, followed by a residual MLP (Zhai et al. 2022, section 2.3; SigLIP's head)."""

    config: ViTSettings
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], real: Bool[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch width"]:
        """Pool the tokens; those with `real` False are padding and not attended to."""
        c = self.config
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, c.width)).astype(x.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], *probe.shape))
        segments = {}
        if real is not None:
            segments = dict(segments=jnp.ones(probe.shape[:2], jnp.int32), context_segments=real.astype(jnp.int32))
        y, _ = Attention(c, dtype=self.dtype, name="attention")(probe, context=x, **segments)
        return (y + MLP(c, self.dtype, name="mlp")(norm_of(c, self.dtype, "norm")(y)))[:, 0]


def build(section: Any, info: DataInfo, dtype: Any = jnp.float32, path: str = "model", **settings: Any) -> ViT:
    """Return the ViT of a config section for the images of `info`; `settings` take precedence over the section's."""
    config = dataclasses.replace(ViTSettings.read(section, path), **settings)
    return vit_for(config, tuple(info.shapes["image"].shape), dtype, path)


def vit_for(config: ViTSettings, image_shape: tuple[int, ...], dtype: Any = jnp.float32, path: str = "model") -> ViT:
    """Return the ViT for images of shape (height, width, channels); raise UserError if the patch size does not divide them."""
    height, width, channels = image_shape
    (p, q), size = config.patch, config.patch_size
    if (height % p or width % q) and not (config.crop and height >= p and width >= q):
        fits = [n for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
        fits = f"{', '.join(map(str, fits[:-1]))} or {fits[-1]}" if len(fits) > 1 else "1"
        raise UserError(f"{path}.patch_size={size} does not divide the image, {height} x {width}; use {fits}")
    return ViT(config, (height, width), channels, dtype, parent=None)
