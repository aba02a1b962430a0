"""Two towers with a common embedding space: an image and a text encoder whose unit vectors are compared (CLIP, SigLIP)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.models.dense import Dense
from ssl_jax.models.language import LanguageSettings, Transformer, pooled
from ssl_jax.models.layers import Keys
from ssl_jax.models.vit import ViT, ViTSettings, vit_for
from ssl_jax.task import DataInfo

POOLINGS = ("eos", "last", "cls", "mean")


@dataclasses.dataclass(frozen=True)
class TextSettings(LanguageSettings):
    """A text tower. The defaults are CLIP's: causal, pooled at the end-of-text token (Radford et al. 2021, section 2.4).

    SigLIP's are causal=False, pooling="last" (the last position, padding or not), mask_padding=False.
    """

    causal: bool = True
    pooling: str = "eos"  # "eos" (the first end-of-text token), "last" (position), "cls" (the first position) or "mean"
    mask_padding: bool = False  # exclude padding from attention and "mean"; a causal tower with pooling="eos" needs no mask

    def __post_init__(self):
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling={self.pooling!r}: must be one of {', '.join(POOLINGS)}")


@dataclasses.dataclass(frozen=True)
class DualEncoderSettings:
    """`model`: both towers and their projections into the common space.

    CLIP projects both linearly, without bias. SigLIP uses the image tower's pooling head directly (image_projection=False,
    so that `dim` is the image tower's width) and projects the text with a bias.
    """

    image: ViTSettings = dataclasses.field(default_factory=ViTSettings)
    text: TextSettings = dataclasses.field(default_factory=TextSettings)
    dim: int = 512  # dimensions of the common space
    image_projection: bool = True
    text_projection: bool = True
    projection_bias: bool = False

    def __post_init__(self):
        if self.dim < 1:
            raise UserError(f"dim={self.dim}: must be at least 1")
        for name in ("image", "text"):
            width = getattr(self, name).width
            if not getattr(self, f"{name}_projection") and width != self.dim:
                raise UserError(f"dim={self.dim}: must equal {name}.width={width}, because {name}_projection=False")

    @classmethod
    def read(cls, section: Any, path: str = "model") -> "DualEncoderSettings":
        """Return the settings of a config section; `image.size="B"` sets the image tower's shape as a ViT's."""
        section = dict(section or {})
        image = ViTSettings.read(section.pop("image", None), f"{path}.image")
        return configs.read(cls, section, path, image=image)


class DualEncoder(nn.Module):
    """Parameters: "image" (a ViT's), "text" (a Transformer's), "image_projection", "text_projection"."""

    config: DualEncoderSettings
    image_size: tuple[int, int]
    channels: int
    vocabulary: int
    context_length: int
    end_id: int | None = None  # the token that ends a text
    pad_id: int | None = None
    dtype: Any = jnp.float32

    @property
    def image_encoder(self) -> ViT:
        """Return the image tower, for its shapes; its parameters are under "image"."""
        return vit_for(self.config.image, (*self.image_size, self.channels), self.dtype)

    def setup(self):
        c = self.config
        self.image = ViT(c.image, self.image_size, self.channels, self.dtype)
        self.text = Transformer(c.text, self.vocabulary, c.text.causal, self.dtype, self.context_length)
        for name, width in (("image", c.image.width), ("text", c.text.width)):
            if getattr(c, f"{name}_projection"):
                init = nn.initializers.normal(width**-0.5)
                layer = Dense(c.dim, use_bias=c.projection_bias, kernel_init=init, dtype=self.dtype)
                setattr(self, f"{name}_projection", layer)

    def __call__(
        self, images: Float[Array, "batch height width channels"], tokens: Int[Array, "batch time"]
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
        return self.encode_image(images)[0], self.encode_text(tokens)[0]

    def encode_image(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        visible: Int[Array, "batch kept"] | None = None,
        keys: Keys = None,
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch tokens tower"], dict]:
        """Return unit vectors f32, the tower's tokens and its intermediates. `visible`: the patches that are not dropped."""
        tokens, intermediates = self.image(images, visible=visible, keys=keys)
        pooled = intermediates["pooled"]
        return unit(self.image_projection(pooled) if self.config.image_projection else pooled), tokens, intermediates

    def encode_text(
        self, tokens: Int[Array, "batch time"], *, mask: Int[Array, "batch time"] | None = None, keys: Keys = None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch time width"]]:
        """Return unit vectors f32 and hidden states. Tokens with `mask` 0 are not attended to; default: by `mask_padding`."""
        c = self.config.text
        # 1 up to and including the first end-of-text token, 0 after it; some vocabularies pad with that token
        end = jnp.argmax(tokens == self.end_id, axis=1) if self.end_id is not None else None
        segments, options = None, {}
        if mask is not None:  # hides keys only, as in the reference: the last position is read even if it is padding
            segments = (mask > 0).astype(jnp.int32)
            options = {"segments": jnp.ones_like(segments), "key_segments": segments}
        elif c.mask_padding:
            if end is not None:
                segments = (jnp.arange(tokens.shape[1]) <= end[:, None]).astype(jnp.int32)
            else:
                segments = (tokens != self.pad_id).astype(jnp.int32)
        hidden, _ = self.text(tokens, keys=keys, **(options or {"segments": segments}))
        if c.pooling == "eos":
            vector = jax.vmap(lambda row, i: row[i])(hidden, end)
        elif c.pooling == "last":
            vector = hidden[:, -1]
        else:
            vector = pooled(hidden, segments)[c.pooling].astype(self.dtype)
        return unit(self.text_projection(vector) if self.config.text_projection else vector), hidden

    def flops_forward(self, kept: int | None = None) -> float:
        """Return the matmul FLOPs of one pair's forward pass with `kept` visible patches."""
        c = self.config
        image = self.image_encoder.flops_forward(kept)
        text = c.text.flops_forward(self.context_length, causal=c.text.causal)
        heads = 2 * c.dim * (c.image_projection * c.image.width + c.text_projection * c.text.width)
        return image + text + heads


def build(section: Any, info: DataInfo, dtype: Any = jnp.float32, path: str = "model") -> DualEncoder:
    """Return the dual encoder of a config section; raise UserError if it does not fit the images or tokenizer of `info`."""
    config, tokenizer = DualEncoderSettings.read(section, path), info.tokenizer
    vit = vit_for(config.image, tuple(info.shapes["image"].shape), dtype, f"{path}.image")
    context_length, vocabulary = info.shapes["tokens"].shape[0], config.text.tokens(tokenizer.size)
    end_id, pad_id = tokenizer.separator_id, tokenizer.pad_id
    if config.text.pooling == "eos" and end_id is None:
        raise UserError(f'{path}.text.pooling="eos": the tokenizer has no token that ends a text; use "mean" or "last"')
    if config.text.mask_padding and end_id is None and pad_id is None:
        raise UserError(f"{path}.text.mask_padding=True: the tokenizer has neither a padding token nor one that ends a text")
    longest = config.text.context_length
    if longest is not None and longest < context_length:
        raise UserError(f"{path}.text.context_length={longest}: must be at least data.context_length={context_length}")
    return DualEncoder(config, vit.image_size, vit.channels, vocabulary, context_length, end_id, pad_id, dtype)


def unit(x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    """Return x / |x| in f32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
