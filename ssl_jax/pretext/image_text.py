"""Contrastive image-text pre-training: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), FLIP (Li et al. 2023)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.data.pairs import Encode
from ssl_jax.errors import UserError
from ssl_jax.models.dual_encoder import DualEncoder
from ssl_jax.pretext.contrastive import fingerprints, infonce, sigmoid
from ssl_jax.pretext.patch_masking import PatchMaskSettings
from ssl_jax.randomness import example_keys, substream
from ssl_jax.reports.contact_sheet import ranked
from ssl_jax.task import Batch, Context, DataInfo, Images, Metrics, Params, Task, Text

INITIAL = {"infonce": (math.log(1 / 0.07), None), "sigmoid": (math.log(10.0), -10.0)}  # log scale, bias


@dataclasses.dataclass(frozen=True)
class ImageTextSettings:
    """The settings of `task`. The defaults are CLIP's; SigLIP's are loss="sigmoid", max_scale=None."""

    loss: str = "infonce"  # "infonce" or "sigmoid"
    max_scale: float | None = 100.0  # clip the logit scale to [1, max_scale] after each step; None: no clipping
    mask: PatchMaskSettings | None = None  # patches dropped in training (FLIP: kind="random", ratio=0.5)
    same_text: str = "negative"  # pairs of an image with an equal text of another example: "negative" (CLIP) or "ignore"
    logit_chunks: int = 1  # compute the batch x batch logits in this many pieces

    def __post_init__(self):
        for name, choices in (("loss", tuple(INITIAL)), ("same_text", ("negative", "ignore"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if self.max_scale is not None and self.max_scale < 1:
            raise UserError(f"max_scale={self.max_scale}: must be at least 1")
        if self.logit_chunks < 1:
            raise UserError(f"logit_chunks={self.logit_chunks}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class ImageText(Task):
    """Parameters: a DualEncoder's, "logit_scale" (a logarithm) and, for the sigmoid loss, "logit_bias".

    The contrastive batch is always the global batch: with training.accumulation = k the towers process k pieces in turn, in the
    forward and again in the backward pass (GradCache), and the loss equals that without accumulation.
    """

    config: ImageTextSettings
    model: DualEncoder
    info: DataInfo

    name: ClassVar[str] = "image_text"
    data: ClassVar[str] = "pairs"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "ImageText":
        task = read(ImageTextSettings, config.task, "task")
        model = models.build("pairs", config, info)
        if task.mask is not None:
            task.mask.check(model.image_encoder.grid, "task.mask")
        batch = config.data.get("batch_size", 0)
        if batch == 1:
            raise UserError("data.batch_size=1: a contrastive loss needs other examples as negatives; use at least 2")
        if task.logit_chunks > 1 and batch % task.logit_chunks:
            raise UserError(f"task.logit_chunks={task.logit_chunks}: must divide data.batch_size={batch}")
        return cls(task, model, info)

    # The model ----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        params = self.model.init(key, images, jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32))["params"]
        scale, bias = INITIAL[self.config.loss]
        params = {**params, "logit_scale": jnp.float32(scale)}
        return params if bias is None else {**params, "logit_bias": jnp.float32(bias)}

    def encode(self, params: Params, images: Array, tokens: Array, keys: Key[Array, "b"] | None) -> tuple[Array, Array]:
        """Return unit vectors of images and texts, f32[batch, dim]; `keys` enable dropout and patch dropping."""
        visible, of = None, lambda name: None if keys is None else substream(keys, name)
        if self.config.mask is not None and keys is not None:
            visible = self.config.mask(of("mask"), self.model.image_encoder.grid).visible
        towers = {name: params[name] for name in params if not name.startswith("logit")}
        apply = lambda method, *args, **kw: self.model.apply({"params": towers}, *args, method=method, **kw)[0]
        x = apply("encode_image", images, visible=visible, keys=of("image_dropout"))
        return x, apply("encode_text", tokens, keys=of("text_dropout"))

    def contrast(self, params: Params, image: Array, text: Array, tokens: Array) -> Float[Array, ""]:
        """Return the loss over all pairs of unit vectors."""
        same = fingerprints(tokens) if self.config.same_text == "ignore" else None
        options = dict(same=same, chunks=self.config.logit_chunks)
        scale = jnp.exp(params["logit_scale"])
        if self.config.loss == "infonce":
            return infonce(image, text, scale, **options)
        return sigmoid(image, text, scale, params["logit_bias"], **options)

    # The contract -------------------------------------------------------------------------------------------------

    @property
    def relates_examples(self) -> bool:
        return True

    def embed(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
        """Return unit vectors of images and texts. `train=False` keeps every patch: FLIP drops patches only in training."""
        return self.encode(params, batch["image"], batch["tokens"], example_keys(key, batch["position"]) if train else None)

    def joint_loss(
        self, params: Params, rows: tuple[Array, Array], batch: Batch, *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the contrastive loss over all pairs of the batch."""
        metrics = {"scale": jnp.exp(params["logit_scale"])}
        if "truncated" in batch:
            metrics["truncated"] = jnp.mean(batch["truncated"].astype(jnp.float32))
        return self.contrast(params, *rows, batch["tokens"]), metrics

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return, for "image", "image_embedding" (unit vectors) and the tower's representations; for "tokens",
        "text_embedding"."""
        towers = {name: params[name] for name in params if not name.startswith("logit")}
        named = {}
        if "image" in batch:
            read: Any = self.model.apply({"params": towers}, batch["image"], method="encode_image")
            vector, tokens, intermediates = read
            named = self.model.image_encoder.representations(tokens, intermediates) | {"image_embedding": vector}
        if "tokens" in batch:
            mask = batch.get("attention_mask")
            read = self.model.apply({"params": towers}, batch["tokens"], mask=mask, method="encode_text")
            named["text_embedding"] = read[0]
        return named

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "image_embedding", "text_embedding" f32[batch, dim], "logits_per_image" f32[images, texts], also as "logits",
        and "loss" if there are as many texts as images. Tokens with 0 in "attention_mask" are padding and not attended to."""
        named = self.features(params, batch)
        image, text = named["image_embedding"], named["text_embedding"]
        logits = jnp.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0.0)
        out = {"image_embedding": image, "text_embedding": text, "logits_per_image": logits, "logits": logits}
        return out | ({"loss": self.contrast(params, image, text, batch["tokens"])} if len(image) == len(text) else {})

    def panels(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None
    ) -> dict[str, Images | Text]:
        """Return, for each caption of the batch, the most similar images in order."""
        out = jax.jit(self.forward)(params, batch)
        images = np.asarray(batch["image"]) * np.float32(self.info.std or 1) + np.float32(self.info.mean or 0)
        captions = [self.info.tokenizer.decode(self.words(row)) for row in np.asarray(batch["tokens"])]
        panel = ranked(captions, images, np.asarray(out["logits"]).T, top=5, own=np.arange(len(images)))
        return {"matches_in_batch": panel}

    def words(self, tokens: np.ndarray) -> list[int]:
        """Return a row of tokens without special, end and padding tokens."""
        special = {*self.info.tokenizer.special_ids, self.model.end_id, self.model.pad_id}
        return [int(token) for token in tokens if int(token) not in special]

    def tokenize(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return {"tokens": i32[texts, context]}, the text tower's input; long texts are truncated."""
        return {"tokens": Encode(self.info.tokenizer, self.model.context_length).batch(texts)[0]}

    def after_update(self, params: Params, variables: Any, statistics: Any, context: Context) -> tuple[Params, Any]:
        """Clamp the logit scale to [0, ln max_scale] (Radford et al. 2021, section 2.5)."""
        if self.config.max_scale is None:
            return params, variables
        clamped = jnp.clip(params["logit_scale"], 0.0, math.log(self.config.max_scale))
        return {**params, "logit_scale": clamped}, variables

    def index_limits(self) -> dict[str, int]:
        """Return the number of rows of each table that the batch's integers index."""
        return {"tokens": self.model.config.text.padded(self.model.vocabulary)}

    def flops(self) -> float:
        mask, size, patch = self.config.mask, self.model.image_size, self.model.config.image.patch
        kept = None if mask is None else mask.kept((size[0] // patch[0], size[1] // patch[1]))
        return 3 * self.model.flops_forward(kept)
