"""Diagnostics of representation collapse, for methods whose loss a constant output could minimise.

A loss returns averages over its examples (`moments`, mean probabilities); nonlinear quantities are derived once from the
averages over the global batch, so that no number depends on the division of the batch.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.task import Metrics

MIN_STD = 0.1  # of directions: random pairs then have a cosine similarity of 0.99
MIN_IN_USE = 0.02  # share of the prototypes, or of MANY if there are more than a batch could use
MANY = 256
MAX_ENTROPY = 0.995  # share of log(prototypes): targets that are the same for all prototypes


def moments(x: Float[Array, "rows dim"], weight: Float[Array, "rows"] | None = None) -> Metrics:
    """Return mean f32[dim] and second moment f32[dim, dim] of the rows, each scaled to length sqrt(dim), without gradient."""
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
    weight = jnp.ones(len(x)) if weight is None else weight
    share = weight / jnp.maximum(jnp.sum(weight), 1)
    return {"mean": share @ x, "second_moment": jnp.einsum("ni,nj,n->ij", x, x, share)}


def spread(statistics: Metrics) -> Metrics:
    """Return the features' deviation and effective rank, from their averaged `moments`.

    std: the root of the mean variance of a dimension, 1 where directions are distributed evenly and 0 where all are equal
    (Chen & He 2021, section 4.1). effective_rank: (tr C)^2 / tr C^2 of the covariance C, the number of equally strong
    directions with this concentration (of order 2: no eigenvalues are needed).
    """
    covariance = statistics["second_moment"] - jnp.outer(statistics["mean"], statistics["mean"])
    trace = jnp.maximum(jnp.trace(covariance), 0)
    rank = trace**2 / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-20)
    return {"std": jnp.sqrt(trace / len(covariance)), "effective_rank": rank}


def entropy(p: Float[Array, "*rows outcomes"]) -> Float[Array, "*rows"]:
    """Return the entropy of distributions, in nats."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)


def in_use(mean_probability: Float[Array, "prototypes"]) -> Float[Array, ""]:
    """Return the number of prototypes in use: the exponential of the entropy of their mean probability."""
    return jnp.exp(entropy(mean_probability))


def deviation(x: Float[Array, "rows dim"]) -> Float[Array, ""]:
    """Return the root of the mean variance of a dimension over the rows, without gradient."""
    return jax.lax.stop_gradient(jnp.sqrt(jnp.mean(jnp.var(x.astype(jnp.float32), axis=0))))


def verdict(metrics: Mapping[str, float], prototypes: int = 0) -> str | None:
    """Return one line that says how a run has collapsed, from its logged metrics; None if it has not.

    prototypes: their number, if the targets are distributions over them.
    """
    for name, what in (("std", "features"), ("embedding_std", "embeddings")):
        if metrics.get(name, 1.0) < MIN_STD:
            return f"collapsed: the {what} of all images are nearly the same ({name}={metrics[name]:.3g}, below {MIN_STD})"
    used, entropy = metrics.get("prototypes_in_use"), metrics.get("target_entropy")
    if used is not None and used < max(1.5, MIN_IN_USE * min(prototypes, MANY)):
        return f"collapsed: nearly all images have the same target (prototypes_in_use={used:.3g} of {prototypes:,})"
    if entropy is not None and entropy > MAX_ENTROPY * math.log(prototypes):
        most = math.log(prototypes)
        return f"collapsed: the targets are the same for all prototypes (target_entropy={entropy:.4g} of {most:.4g})"
    return None
