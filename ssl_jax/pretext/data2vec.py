"""data2vec (Baevski et al. 2022, arXiv:2202.03555): predict the teacher's representations of hidden patches or words.

The teacher, a moving average, reads the whole input; the targets are the mean of several blocks' representations, which
depend on the whole input.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.models import block_name
from ssl_jax.models.heads import RegressionHead
from ssl_jax.models.language import Head
from ssl_jax.models.vit import ViT
from ssl_jax.pretext import collapse
from ssl_jax.pretext.masked_token import MaskedToken, MaskedTokenSettings
from ssl_jax.pretext.patch_masking import BlockMask, PatchMaskSettings
from ssl_jax.pretext.targets import smooth_l1, standardize
from ssl_jax.pretext.token_masking import SpanMask
from ssl_jax.pretext.views import ImageTask, init_encoder
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task


@dataclasses.dataclass(frozen=True)
class TargetSettings:
    """Settings of both images and text; the defaults are those of images and ViT-B (Baevski et al. 2022, section 5.1)."""

    top_blocks: int = 6  # the targets are the mean of the outputs of this many last blocks
    beta: float = 2.0  # where the smooth L1 error becomes linear
    scale: float | None = None  # of the error summed over dimensions; default: 1 / sqrt(dimensions)
    head_layers: int = 1  # of the regression head
    shared_embedding: bool = True  # the teacher uses the student's embedding and positions (section 3.2)

    def __post_init__(self):
        if min(self.top_blocks, self.head_layers) < 1:
            raise UserError(f"top_blocks={self.top_blocks}, head_layers={self.head_layers}: must be at least 1")
        if min(self.beta, 1.0 if self.scale is None else self.scale) <= 0:
            raise UserError(f"beta={self.beta}, scale={self.scale}: must be above 0")

    def check(self, depth: int) -> None:
        if self.top_blocks > depth:
            raise UserError(f"task.targets.top_blocks={self.top_blocks}: must be at most model.depth={depth}")


class Data2Vec(Task):
    """Targets, error and head. Parameters: an encoder with a "stack" in it, and "regression"."""

    needs_teacher: ClassVar[bool] = True
    encoder_name: ClassVar[str]  # in the parameters
    targets: TargetSettings

    def teacher(self, params: Params, context: Context) -> Params:
        """Return the parameters of the teacher's encoder."""
        teacher, student = context.teacher[self.encoder_name], params[self.encoder_name]
        return jax.lax.stop_gradient({**student, "stack": teacher["stack"]} if self.targets.shared_embedding else teacher)

    def target(self, branches: Mapping[str, Array], depth: int) -> Float[Array, "batch time dim"]:
        """Return the mean of the top blocks' normalised FFN outputs before the residual (section 3.3)."""
        k = self.targets.top_blocks
        return jax.lax.stop_gradient(sum(standardize(branches[f"{block_name(i)}/mlp"]) for i in range(depth - k, depth)) / k)

    def error(
        self, params: Params, hidden: Float[Array, "b t dim"], target: Float[Array, "b t dim"], weight: Float[Array, "b t"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean error of predicting `target` from the student's `hidden` states at the positions of weight 1."""
        predicted = self.regression(target.shape[-1]).apply({"params": params["regression"]}, hidden)
        scale = self.targets.scale or target.shape[-1] ** -0.5
        error = scale * jnp.sum(smooth_l1(predicted - target, self.targets.beta), axis=-1)
        loss = jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1)
        moments = collapse.moments(target.reshape(-1, target.shape[-1]), weight.reshape(-1))
        return loss, {"loss": loss, "weight": jnp.sum(weight), **moments}

    def regression(self, width: int) -> RegressionHead:
        return RegressionHead(width, self.targets.head_layers)

    def init_regression(self, key: Key[Array, ""], width: int) -> Params:
        return self.regression(width).init(substream(key, "regression"), jnp.zeros((1, width)))["params"]

    diagnostics, trouble = staticmethod(collapse.spread), staticmethod(collapse.verdict)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The settings of `task` for images."""

    mask: BlockMask = BlockMask()
    targets: TargetSettings = TargetSettings()


@dataclasses.dataclass(frozen=True)
class Data2VecImage(Data2Vec, ImageTask):
    """The student sees a mask token in place of hidden patches. Parameters: "encoder" (a ViT) and "regression"."""

    encoder: ViT
    mask: PatchMaskSettings
    targets: TargetSettings
    info: DataInfo

    name: ClassVar[str] = "data2vec_image"
    encoder_name: ClassVar[str] = "encoder"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "Data2VecImage":
        task, encoder = read(ImageSettings, config.task, "task"), models.build("images", config, info, mask_token=True)
        task.mask.check(encoder.grid, "task.mask")
        task.targets.check(encoder.config.depth)
        return cls(encoder, task.mask, task.targets, info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        regression = self.init_regression(key, self.encoder.config.width)
        return {"encoder": init_encoder(self.encoder, key, self.info), "regression": regression}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        keys, patches = example_keys(key, batch["position"]), slice(self.encoder.config.prefix, None)
        hidden = self.mask(substream(keys, "mask"), self.encoder.grid).hidden
        encode = lambda p, **options: self.encoder.apply({"params": p}, batch["image"], **options)
        target = self.target(encode(self.teacher(params, context), branches=True)[1], self.encoder.config.depth)
        tokens = encode(params["encoder"], mask=hidden, keys=substream(keys, "dropout") if train else None)[0]
        return self.error(params, tokens[:, patches], target[:, patches], hidden.astype(jnp.float32))

    def flops(self) -> float:
        return 4 * self.encoder.flops_forward()


@dataclasses.dataclass(frozen=True)
class TextTargets(TargetSettings):
    top_blocks: int = 10
    beta: float = 4.0
    scale: float | None = 1.0
    head_layers: int = 2


@dataclasses.dataclass(frozen=True)
class TextSettings(MaskedTokenSettings):
    """The settings of `task` for text, by default fairseq's (text/pretraining/base.yaml; its spans are of four tokens)."""

    mask: SpanMask = SpanMask()
    targets: TextTargets = TextTargets()

    def __post_init__(self):
        if self.next_sentence:
            raise UserError("next_sentence=True: data2vec predicts only representations of hidden words; set it to False")


@dataclasses.dataclass(frozen=True)
class Data2VecText(Data2Vec, MaskedToken):
    """Hides words as `masked_token` does, without its output layer. Parameters: "transformer" and "regression"."""

    name: ClassVar[str] = "data2vec_text"
    encoder_name: ClassVar[str] = "transformer"

    @property
    def targets(self) -> TargetSettings:
        return self.settings.targets

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "Data2VecText":
        settings, model = read(TextSettings, config.task, "task"), models.build("tokens", config, info)
        settings.targets.check(model.config.depth)
        info.tokenizer.require("mask")
        if settings.mask.unit != "token":
            _ = info.tokenizer.continues  # raises UserError if the vocabulary does not mark where words begin
        return cls(model, Head.of(model), settings, info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        model = self.model.init(substream(key, "transformer"), batch["tokens"][:1])["params"]
        return {"transformer": model, "regression": self.init_regression(key, self.model.config.width)}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        masked, dropout = self.masked(batch, key), substream(example_keys(key, batch["position"]), "dropout") if train else None
        inputs = {name: batch[name] for name in ("segments", "token_types", "positions") if name in batch}
        encode = lambda p, tokens, **options: self.model.apply({"params": p}, tokens, **inputs, **options)
        pick = lambda x: jnp.take_along_axis(x, masked.places[..., None], axis=1)
        target = self.target(encode(self.teacher(params, context), batch["tokens"], branches=True)[1], self.model.config.depth)
        hidden = encode(params["transformer"], masked.tokens, keys=dropout)[0]
        return self.error(params, pick(hidden), pick(target), masked.real)

    forward, panels = MaskedToken.features, Task.panels

    def flops(self) -> float:
        return 4 * self.model.config.flops_forward(self.info.shapes["tokens"].shape[0])
