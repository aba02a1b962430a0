"""I-JEPA (Assran et al. 2023, arXiv:2301.08243): from one block of an image predict the representations of others."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.models.heads import Predictor
from ssl_jax.models.layers import TransformerSettings
from ssl_jax.models.patches import take
from ssl_jax.models.vit import ViT
from ssl_jax.pretext import collapse
from ssl_jax.pretext.block_masking import BlockMaskSettings, Blocks
from ssl_jax.pretext.targets import smooth_l1, standardize
from ssl_jax.pretext.views import ImageTask, init_encoder
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params


@dataclasses.dataclass(frozen=True)
class PredictorSettings(TransformerSettings):
    """The defaults are those beside ViT-H (Assran et al. 2023, appendix A.1)."""

    width: int = 384
    depth: int = 12
    heads: int = 16
    init: str = "trunc_normal"


@dataclasses.dataclass(frozen=True)
class IJEPASettings:
    """The settings of `task`."""

    mask: BlockMaskSettings = BlockMaskSettings()
    predictor: PredictorSettings = PredictorSettings()


@dataclasses.dataclass(frozen=True)
class IJEPA(ImageTask):
    """Parameters: "encoder" (a ViT) and "predictor". The teacher is the encoder's moving average."""

    config: IJEPASettings
    encoder: ViT
    info: DataInfo

    name: ClassVar[str] = "ijepa"
    needs_teacher: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "IJEPA":
        task, encoder = read(IJEPASettings, config.task, "task"), models.build("images", config, info)
        task.mask.check(encoder.grid, "task.mask")
        if task.predictor.width % 4:
            raise UserError(f"task.predictor.width={task.predictor.width}: must be a multiple of 4, for its positions")
        return cls(task, encoder, info)

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.config.predictor, self.encoder.grid, self.encoder.config.width, self.encoder.dtype)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        tokens, one = jnp.zeros((1, 1, self.encoder.config.width)), jnp.ones((1, 1), jnp.int32)
        predictor = self.predictor.init(substream(key, "predictor"), tokens, one, one, one, one)["params"]
        return {"encoder": init_encoder(self.encoder, key, self.info), "predictor": predictor}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean smooth L1 error over the targets' patches; images whose context is too small have weight 0."""
        keys, images = example_keys(key, batch["position"]), batch["image"]
        blocks = self.config.mask(substream(key, "blocks"), substream(keys, "blocks"), self.encoder.grid)
        whole = jax.lax.stop_gradient(self.encode(context.teacher, images))
        target = standardize(of_targets(whole, blocks))
        dropout = substream(keys, "dropout") if train else None
        seen = self.encode(params, images, visible=blocks.context, segments=blocks.seen, keys=dropout)
        error = jnp.mean(smooth_l1(self.predict(params, seen, blocks) - target), axis=-1)
        valid = blocks.valid.astype(jnp.float32)
        weight = valid[:, None, None] * jnp.broadcast_to(blocks.real.astype(jnp.float32), error.shape)
        loss = jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1)
        share = jnp.sum(blocks.seen.astype(jnp.float32), axis=1) / self.encoder.patches
        metrics = {"loss": loss, "weight": jnp.sum(weight), "context": jnp.sum(valid * share) / jnp.maximum(jnp.sum(valid), 1)}
        return loss, {**metrics, **collapse.moments(jnp.mean(whole, axis=1), valid)}

    def encode(self, params: Params, images: Array, **options: Any) -> Float[Array, "batch tokens dim"]:
        """Return the encoder's patch tokens, f32."""
        tokens = self.encoder.apply({"params": params["encoder"]}, images, **options)[0]
        return tokens[:, self.encoder.config.prefix :].astype(jnp.float32)

    def predict(self, params: Params, seen: Float[Array, "b kept dim"], blocks: Blocks) -> Float[Array, "b targets most dim"]:
        """Predict each target block separately from the context's tokens."""
        b, m, most = blocks.targets.shape
        often = lambda x: jnp.repeat(x, m, axis=0)
        real = jnp.broadcast_to(blocks.real, (b * m, most))
        arguments = (often(seen), often(blocks.context), often(blocks.seen), blocks.targets.reshape(b * m, most), real)
        return self.predictor.apply({"params": params["predictor"]}, *arguments).astype(jnp.float32).reshape(b, m, most, -1)

    diagnostics, trouble = staticmethod(collapse.spread), staticmethod(collapse.verdict)

    def flops(self) -> float:
        mask, grid, encoder = self.config.mask, self.encoder.grid, self.encoder
        kept, most = mask.most(grid), int(mask.target_sizes(grid).prod(1).max())
        predictor = mask.targets * self.predictor.flops_forward(encoder.config.width, kept, most)
        return 3 * (encoder.flops_forward(kept) + predictor) + encoder.flops_forward()


def of_targets(tokens: Float[Array, "b patches dim"], blocks: Blocks) -> Float[Array, "b targets most dim"]:
    """Return the tokens of the patches of each target."""
    return take(tokens, blocks.targets.reshape(len(tokens), -1)).reshape(*blocks.targets.shape, -1)
