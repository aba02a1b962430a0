"""Shared by tasks on images and their views: the encoder's features, a view's shape, encoding views as one batch."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.errors import UserError
from ssl_jax.models.vit import ViT
from ssl_jax.randomness import substream
from ssl_jax.task import Batch, DataInfo, Params, Task


class ImageTask(Task):
    """A task whose parameters hold a ViT, "encoder", and whose representations are the ViT's."""

    data: ClassVar[str] = "images"
    encoder: ViT

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        tokens, intermediates = self.encoder.apply({"params": params["encoder"]}, batch["image"])
        return self.encoder.representations(tokens, intermediates)


def init_encoder(encoder: ViT, key: Key[Array, ""], info: DataInfo) -> Params:
    return encoder.init(substream(key, "encoder"), jnp.zeros((1, *info.shapes["image"].shape)))["params"]


def view_shape(info: DataInfo, name: str, count: int, why: str, *, exactly: bool = False) -> tuple[int, ...]:
    """Return (count, height, width, channels) of a view; raise UserError if it is missing or has another number of copies."""
    if name not in info.shapes:
        raise UserError(f"data.views.{name} is missing: {why}; add data.views = dict({name}=dict(count={count}, augment=...))")
    shape = tuple(info.shapes[name].shape)
    if shape[0] != count if exactly else shape[0] < count:
        raise UserError(f"data.views.{name}.count={shape[0]}: must be {'' if exactly else 'at least '}{count}; {why}")
    return shape


def encode_views(
    encoder: ViT,
    params: Mapping[str, Any],
    views: Float[Array, "batch views h w c"],
    keys: Key[Array, "batch"] | None,
    name: str,
    mask: Bool[Array, "batch views patches"] | None = None,
) -> tuple[Float[Array, "batch views patches dim"], Float[Array, "batch views dim"]]:
    """Return patch tokens and pooled representations, f32, of every view; each draws dropout from a stream of its own.

    mask: the patches that the mask token replaces. Views of another size than the encoder's get interpolated positions.
    """
    b, v = views.shape[:2]
    merge = lambda x: x.reshape(b * v, *x.shape[2:])
    if keys is not None:
        keys = view_keys(keys, name, v).reshape(b * v)
    tokens, found = encoder.apply({"params": params}, merge(views), keys=keys, mask=None if mask is None else merge(mask))
    split = lambda x: x.reshape(b, v, *x.shape[1:]).astype(jnp.float32)
    return split(tokens[:, encoder.config.prefix :]), split(found["pooled"])


def view_keys(keys: Key[Array, "batch"], name: str, views: int) -> Key[Array, "batch views"]:
    """Return a key for each of `views` views of each example, from the stream `name`."""
    return jax.vmap(lambda key: jax.random.split(key, views))(substream(keys, name))
