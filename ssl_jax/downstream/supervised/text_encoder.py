"""What the supervised tasks over text share: their transformer and their cross entropy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.models.language import Transformer
from ssl_jax.task import Batch, Params


def init_transformer(model: Transformer, key: Key[Array, ""], batch: Batch) -> Params:
    return model.init(key, jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32))["params"]


def label_scores(logits: Float[Array, "*batch classes"], labels: Array, smoothing: float) -> Float[Array, "*batch"]:
    """Cross entropy against (1 - smoothing) of the label and smoothing / classes of each class (Szegedy et al. 2016, 7)."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
    return -((1 - smoothing) * own + smoothing * jnp.mean(logp, axis=-1)) if smoothing else -own
