"""What the supervised tasks over text share: their transformer and their cross entropy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax.downstream.class_weights import binary_cross_entropy
from ssl_jax.models.language import Transformer
from ssl_jax.task import Batch, Params


def init_transformer(model: Transformer, key: Key[Array, ""], batch: Batch) -> Params:
    return model.init(key, jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32))["params"]


def class_scores(
    logits: Float[Array, "batch classes"],
    targets: Int[Array, "batch classes"],
    smoothing: float,
    positive: Float[Array, "..."] | float = 1.0,
) -> Float[Array, "batch"]:
    """Binary cross entropy of each class, the mean over classes, against (1 - smoothing) of the target and smoothing / 2."""
    soft = (1 - smoothing) * targets.astype(jnp.float32) + smoothing / 2
    return jnp.mean(binary_cross_entropy(logits.astype(jnp.float32), soft, positive), axis=-1)


def label_scores(logits: Float[Array, "*batch classes"], labels: Array, smoothing: float) -> Float[Array, "*batch"]:
    """Cross entropy against (1 - smoothing) of the label and smoothing / classes of each class (Szegedy et al. 2016, 7)."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
    return -((1 - smoothing) * own + smoothing * jnp.mean(logp, axis=-1)) if smoothing else -own
