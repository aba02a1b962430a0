"""Image classification: a vision transformer with a linear head, trained by the one loop.

Fine-tuning (He et al. 2022, table 9 and figure 9), training from scratch (table 11) and the linear probe with augmentation
(table 10) are settings of it.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.data.images.augment import Mix, mix
from ssl_jax.data.labels import several_classes
from ssl_jax.downstream.class_weights import balanced_weights, binary_cross_entropy, positive_weights
from ssl_jax.errors import UserError
from ssl_jax.models.layers import truncated_normal
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text


@dataclasses.dataclass(frozen=True)
class ClassificationSettings:
    """`task` of name "classification"."""

    pooling: str = "mean"  # "mean" of the patches, then a norm, the final norm dropped (MAE's code); or "cls" (its paper)
    head_std: float = 2e-5  # the head's initial weights; small, so that early gradients barely disturb the encoder
    head_norm: str = "none"  # "batch": batch norm without affine, eps 1e-6, before the head (MAE's linear probe)
    mix: Mix | None = None  # mixup, cutmix, label smoothing
    class_weights: str | None = None  # "balanced": classes weigh the same, whatever their sizes

    def __post_init__(self):
        options = (("pooling", ("mean", "cls")), ("head_norm", ("none", "batch")), ("class_weights", (None, "balanced")))
        for name, choices in options:
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(map(str, choices))}")
        if not 0 <= self.head_std < 1:
            raise UserError(f"head_std={self.head_std}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Parameters: "encoder" and "head". Batches: {"image", "label"}, labels i32[batch] or soft f32[batch, classes].

    Where an example may have several classes (`several_classes`) labels are i32[batch, classes] of 0 and 1, and each class is
    a yes or no of its own: the loss is the binary cross-entropy, the mean over examples and classes. Class weights are
    `balanced_weights`, or of several classes `positive_weights`.
    """

    settings: ClassificationSettings
    encoder: Any  # a model that reads images
    info: DataInfo

    name: ClassVar[str] = "classification"
    data: ClassVar[str] = "images"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "Classification":
        settings = read(ClassificationSettings, config.get("task"), "task")
        if not info.classes:
            raise UserError("data.train: has no labels; classification needs them")
        if len(info.classes) == 1 and not several_classes(info.shapes):
            raise UserError(f"data.train: has a single class ({info.classes[0]}); classification needs at least two")
        mean = settings.pooling == "mean"
        if not mean and not config.model.get("class_token", True):
            raise UserError('task.pooling="cls" needs model.class_token=True')
        pooling = dict(pooling=settings.pooling, norm_pooled=mean, pooler=False)
        return cls(settings, models.build("images", config, info, mask_token=False, **pooling), info)

    @property
    def several_classes(self) -> bool:
        """Whether an example may have several classes."""
        return several_classes(self.info.shapes)

    @property
    def _head(self) -> nn.Dense:
        std = self.settings.head_std
        init = truncated_normal(std) if std else nn.initializers.zeros
        return nn.Dense(len(self.info.classes), kernel_init=init, dtype=jnp.float32)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        encoder = self.encoder.init(substream(key, "encoder"), images)["params"]
        head = self._head.init(substream(key, "head"), jnp.zeros((1, self.encoder.config.width)))["params"]
        return {"encoder": encoder, "head": head}

    def _encode(self, params: Params, images: Array, keys=None) -> tuple[Array, dict[str, Array]]:
        return self.encoder.apply({"params": params["encoder"]}, images, keys=keys)

    def _logits(self, params: Params, pooled: Float[Array, "batch width"]) -> Float[Array, "batch classes"]:
        """Return the head's output. Batch norm uses the moments of these examples, in training as in evaluation: where that
        matters, evaluate "pooled" with the moments of the training split (`linear_probe`)."""
        x = pooled.astype(jnp.float32)
        if self.settings.head_norm == "batch":
            x = (x - jnp.mean(x, axis=0)) * jax.lax.rsqrt(jnp.var(x, axis=0) + 1e-6)
        return self._head.apply({"params": params["head"]}, x)

    # The loss -----------------------------------------------------------------------------------------------------------

    @property
    def relates_examples(self) -> bool:
        """Batch norm before the head takes its moments over the global batch."""
        return self.settings.head_norm == "batch"

    def prepare(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Batch:
        """Mix the examples of the global batch (`mix`); "hard_label" keeps the labels for the accuracy."""
        if not train or self.settings.mix is None or not jnp.issubdtype(batch["label"].dtype, jnp.integer):
            return batch
        mixed = mix(dict(batch), substream(key, "mix"), self.settings.mix, len(self.info.classes))
        return {**mixed, "hard_label": batch["label"]}

    def embed(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> Float[Array, "batch width"]:
        """Return what the head reads; drop path acts in training only."""
        keys = substream(example_keys(key, batch["position"]), "dropout") if train else None
        return self._encode(params, batch["image"], keys)[1]["pooled"]

    def joint_loss(
        self, params: Params, rows: Array, batch: Batch, *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean cross-entropy with labels, hard or soft, weighted by class if asked for, and the accuracy.

        Of several classes an example, "subset_accuracy" is the share of examples whose classes are all right.
        """
        logits, target = self._logits(params, rows), batch["label"]
        if self.several_classes:
            right = jnp.all((logits > 0) == (batch.get("hard_label", target) > 0), axis=-1)
            positive = positive_weights(self.info.extra["class_counts"]) if self.settings.class_weights else 1.0
            loss = jnp.mean(binary_cross_entropy(logits, target, jnp.asarray(positive, jnp.float32)))
            return loss, {"subset_accuracy": jnp.mean(right.astype(jnp.float32))}
        best = batch.get("hard_label", target if target.ndim == 1 else jnp.argmax(target, axis=-1))
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == best).astype(jnp.float32))
        if self.settings.class_weights:
            weights = jnp.asarray(balanced_weights(self.info.extra["class_counts"]), jnp.float32)
            target = target if target.ndim == 2 else jax.nn.one_hot(target, len(weights))
            return -jnp.mean(jnp.sum(weights * target * jax.nn.log_softmax(logits), axis=-1)), {"accuracy": accuracy}
        if jnp.issubdtype(target.dtype, jnp.integer):
            loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, target))
        else:
            loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
        return loss, {"accuracy": accuracy}

    # What is read off -----------------------------------------------------------------------------------------------------

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The encoder's representations, "pooled" (what the head reads) and "logits"."""
        tokens, inner = self._encode(params, batch["image"])
        return self.encoder.representations(tokens, inner) | {"logits": self._logits(params, inner["pooled"])}

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """ "logits", "tokens" f32[batch, prefix + patches, width] and "pooled", what the head reads."""
        tokens, inner = self._encode(params, batch["image"])
        logits, pooled = self._logits(params, inner["pooled"]), inner["pooled"].astype(jnp.float32)
        return {"logits": logits, "tokens": tokens.astype(jnp.float32), "pooled": pooled}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        """What the model says of each example, and how sure it is."""
        logits = jax.jit(self.forward)(params, dict(batch))["logits"]
        names, lines = self.info.classes, []
        if self.several_classes:
            listed = lambda row: ", ".join(names[c] for c in np.flatnonzero(row)) or "none"
            for i, row in enumerate(np.asarray(logits)):
                lines.append(listed(row > 0) + (f" (it is {listed(batch['label'][i])})" if "label" in batch else ""))
            return {"predictions": Text(tuple(lines))}
        for i, row in enumerate(np.asarray(jax.nn.softmax(logits))):
            truth = f", it is {names[int(batch['label'][i])]}" if "label" in batch else ""
            lines.append(f"{names[int(row.argmax())]} ({row.max():.0%}{truth})")
        return {"predictions": Text(tuple(lines))}

    def index_limits(self) -> dict[str, int]:
        """Rows of the tables that the batch's integers are looked up in."""
        return {"label": 2 if self.several_classes else len(self.info.classes)}

    def flops(self) -> float:
        return 3 * (self.encoder.flops_forward() + 2 * self.encoder.config.width * len(self.info.classes))
