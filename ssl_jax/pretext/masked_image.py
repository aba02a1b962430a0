"""Masked image modelling: predict hidden patches from the visible ones.

MAE (He et al. 2022, arXiv:2111.06377) with every arm of its table 1, and SimMIM (Xie et al. 2022, arXiv:2111.09886).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.models.mae import Decoder, DecoderSettings
from ssl_jax.models.patches import patchify, unpatchify
from ssl_jax.pretext.patch_masking import Mask, PatchMaskSettings, from_noise
from ssl_jax.pretext.targets import principal_components
from ssl_jax.randomness import example_keys, stream, substream
from ssl_jax.task import Batch, Context, DataInfo, Images, Metrics, Params, Task

TARGETS = ("pixels", "normalized_pixels", "pca")
FIT_EXAMPLES = 4096
BORROWED = "Reconstructions use each patch's true mean and deviation, which the model does not predict; plain ones use the" \
    " average mean and deviation of the image's visible patches."  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MaskedImageSettings:
    """The settings of `task`. The defaults are MAE's."""

    mask: PatchMaskSettings = dataclasses.field(default_factory=PatchMaskSettings)
    target: str = "pixels"  # "pixels", "normalized_pixels" (with each patch's own mean and deviation) or "pca"
    components: int = 96  # number of principal components of the "pca" target
    loss: str = "l2"  # "l2" or "l1"
    loss_on: str = "masked"  # "masked" or "all" patches
    mask_tokens_in_encoder: bool = False  # the encoder reads all positions, with a learned token at hidden ones
    decoder: DecoderSettings = dataclasses.field(default_factory=DecoderSettings)

    def __post_init__(self):
        for name, choices in (("target", TARGETS), ("loss", ("l2", "l1")), ("loss_on", ("masked", "all"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if self.decoder.depth == 0 and not self.mask_tokens_in_encoder:
            raise UserError("decoder.depth=0: a linear decoder sees no hidden patch; set mask_tokens_in_encoder=True")


@dataclasses.dataclass(frozen=True)
class MaskedImage(Task):
    """Parameters: "encoder" and "decoder"; variables: the PCA target's basis."""

    config: MaskedImageSettings
    encoder: Any  # a model that reads images
    decoder: Decoder
    info: DataInfo

    name: ClassVar[str] = "masked_image"
    data: ClassVar[str] = "images"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "MaskedImage":
        task = read(MaskedImageSettings, config.task, "task")
        encoder = models.build("images", config, info, mask_token=task.mask_tokens_in_encoder)
        task.mask.check(encoder.grid, "task.mask")
        outputs = math.prod(encoder.config.patch) * encoder.channels
        if task.target == "pca":
            if not 0 < task.components <= outputs:
                raise UserError(f"task.components={task.components}: must lie in [1, {outputs}], the size of a patch")
            outputs = task.components
        decoder = Decoder(task.decoder, encoder.grid, outputs, encoder.config.prefix, encoder.dtype)
        return cls(task, encoder, decoder, info)

    # The model ----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        """Return parameters for the shapes of `batch`."""
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        mask = self.config.mask(jax.random.split(key, 1), self.encoder.grid)
        encoder = self.encoder.init(substream(key, "encoder"), images)["params"]
        tokens = self._encode({"encoder": encoder}, images, mask, None)
        decoder = self.decoder.init(substream(key, "decoder"), tokens, visible=self._visible(mask))["params"]
        return {"encoder": encoder, "decoder": decoder}

    def variables(self, params: Params) -> dict[str, Array]:
        """Return the PCA target's "mean" f32[pixels] and "basis" f32[pixels, components], which `fit` computes."""
        if self.config.target != "pca":
            return {}
        pixels = math.prod(self.encoder.config.patch) * self.encoder.channels
        return {"mean": jnp.zeros(pixels), "basis": jnp.zeros((pixels, self.config.components))}

    def fit(self, variables: Mapping[str, Any], examples: Callable[[int], Batch]) -> Mapping[str, Any]:
        """Return the PCA basis of the patches of FIT_EXAMPLES training images (table 1d)."""
        if self.config.target != "pca":
            return variables
        patches = patchify(examples(FIT_EXAMPLES)["image"].astype(jnp.float32), self.encoder.config.patch)
        return principal_components(patches, self.config.components)

    def _visible(self, mask: Mask):
        return None if self.config.mask_tokens_in_encoder else mask.visible

    def _encode(self, params, images, mask, keys):
        hidden = mask.hidden if self.config.mask_tokens_in_encoder else None
        return self.encoder.apply({"params": params["encoder"]}, images, visible=self._visible(mask), mask=hidden, keys=keys)[0]

    def predict(self, params: Params, images: Float[Array, "b h w c"], mask: Mask, keys=None) -> Float[Array, "b n out"]:
        """Predict the target of every patch from the visible patches."""
        tokens = self._encode(params, images, mask, keys)
        keys = None if keys is None else substream(keys, "decoder")
        return self.decoder.apply({"params": params["decoder"]}, tokens, visible=self._visible(mask), keys=keys)

    def target(self, images: Float[Array, "b h w c"], context: Context | None) -> Float[Array, "b n out"]:
        """Return the reconstruction target (section 3, "Reconstruction target"; table 1d)."""
        patches = patchify(images.astype(jnp.float32), self.encoder.config.patch)
        if self.config.target == "normalized_pixels":
            mean, deviation = moments(patches)
            return (patches - mean) / deviation
        if self.config.target == "pca" and context is not None:
            return (patches - context.variables["mean"]) @ context.variables["basis"]
        return patches

    # The contract -------------------------------------------------------------------------------------------------

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        keys = example_keys(key, batch["position"])
        mask = self.config.mask(substream(keys, "mask"), self.encoder.grid)
        prediction = self.predict(params, batch["image"], mask, substream(keys, "dropout") if train else None)
        loss = self._loss(prediction, self.target(batch["image"], context), mask.hidden)
        return loss, {"loss": loss}

    def _loss(self, prediction, target, hidden: Bool[Array, "b n"]) -> Float[Array, ""]:
        error = prediction - target
        error = jnp.mean(jnp.square(error) if self.config.loss == "l2" else jnp.abs(error), axis=-1)
        return jnp.mean(error) if self.config.loss_on == "all" else jnp.sum(error * hidden) / jnp.sum(hidden)

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        tokens, intermediates = self.encoder.apply({"params": params["encoder"]}, batch["image"])
        return self.encoder.representations(tokens, intermediates)

    def forward(self, params: Params, batch: Batch, context: Context | None = None) -> dict[str, Array]:
        """Return "loss", "pred" f32[batch, patches, outputs] and "mask" (1 where hidden). The patches with the least
        batch["noise"] f32[batch, patches] are visible; without it, the mask is drawn."""
        images = batch["image"]
        if "noise" in batch:
            mask = from_noise(batch["noise"], self.config.mask.kept(self.encoder.grid))
        else:
            mask = self.config.mask(example_keys(stream(0, "mask"), jnp.arange(images.shape[0])), self.encoder.grid)
        prediction = self.predict(params, images, mask)
        out = {"pred": prediction, "mask": mask.hidden.astype(jnp.float32)}
        if self.config.target == "pca" and context is None:  # without the basis there is no target
            return out
        return {"loss": self._loss(prediction, self.target(images, context), mask.hidden), **out}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Images]:
        """Return original, masked and reconstructed images."""
        columns, note = ("original", "masked", "reconstruction", "reconstruction + visible"), ""
        keys = example_keys(key, jnp.arange(len(batch["image"])))
        rows = jax.jit(self._pictures)(params, batch["image"], keys, context)
        if self.config.target == "normalized_pixels":
            columns, note = (*columns, "plain"), BORROWED
        return {"reconstruction": Images(np.asarray(rows), columns, note)}

    def _pictures(self, params, images, keys, context) -> Float[Array, "rows columns h w c"]:
        """Return pixels in [0, 1]; normalised targets are scaled back by true or (plain) by the visible patches' statistics."""
        patch, grid = self.encoder.config.patch, self.encoder.grid
        mask = self.config.mask(substream(keys, "mask"), grid)
        original = patchify(images.astype(jnp.float32), patch)
        predicted = self.predict(params, images, mask)
        if self.config.target == "normalized_pixels":
            seen = lambda x: jnp.mean(x, axis=1, keepdims=True, where=~mask.hidden[..., None])
            mean, deviation = moments(original)
            plain = predicted * seen(deviation) + seen(mean)
            predicted = predicted * deviation + mean
        elif self.config.target == "pca":
            predicted = predicted @ context.variables["basis"].T + context.variables["mean"]
        hidden = mask.hidden[..., None]
        scale, shift = np.float32(self.info.std or 1.0), np.float32(self.info.mean or 0.0)
        show = lambda patches: jnp.clip(unpatchify(patches, patch, grid) * scale + shift, 0, 1)
        grey = unpatchify(jnp.broadcast_to(hidden, original.shape), patch, grid)
        shown = [show(original), jnp.where(grey, 0.5, show(original)), show(predicted)]
        shown.append(show(jnp.where(hidden, predicted, original)))
        return jnp.stack(shown + ([show(plain)] if self.config.target == "normalized_pixels" else []), axis=1)

    def flops(self) -> float:
        kept = None if self.config.mask_tokens_in_encoder else self.config.mask.kept(self.encoder.grid)
        return 3 * (self.encoder.flops_forward(kept) + self.decoder.flops_forward(self.encoder.config.width, kept))


def moments(patches: Float[Array, "b n pixels"]) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Return each patch's mean and deviation sqrt(var + 1e-6), with the unbiased variance, as in the reference."""
    return jnp.mean(patches, -1, keepdims=True), jnp.sqrt(jnp.var(patches, -1, keepdims=True, ddof=1) + 1e-6)
