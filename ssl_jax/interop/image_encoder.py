"""An image encoder without a pretext task, such as ViTModel and Dinov2Model."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.pretext.views import ImageTask
from ssl_jax.randomness import substream
from ssl_jax.task import Batch, Context, DataInfo, Params


@dataclasses.dataclass(frozen=True)
class ImageEncoderSettings:
    """`task` of name "image_encoder", which has no settings."""


@dataclasses.dataclass(frozen=True)
class ImageEncoder(ImageTask):
    """Parameters: "encoder". To train it, start another task from it with task.init."""

    encoder: Any  # a model that reads images
    info: DataInfo

    name: ClassVar[str] = "image_encoder"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "ImageEncoder":
        read(ImageEncoderSettings, config.get("task"), "task")
        return cls(models.build("images", config, info), info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        return {"encoder": self.encoder.init(substream(key, "encoder"), images)["params"]}

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None):
        raise UserError('task.name="image_encoder": has no loss; start another task from it with task.init')

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "tokens" f32[batch, prefix + patches, width] after the final norm, and "pooled" f32[batch, width]."""
        tokens, intermediates = self.encoder.apply({"params": params["encoder"]}, batch["image"])
        return {"tokens": tokens.astype(jnp.float32), "pooled": intermediates["pooled"].astype(jnp.float32)}

    def flops(self) -> float:
        return 3 * self.encoder.flops_forward()
