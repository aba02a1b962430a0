"""Targets computed from a teacher's outputs, and losses for predicting them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scores = Float[Array, "*rows prototypes"]


def standardize(x: Float[Array, "*rows dim"], eps: float = 1e-5) -> Float[Array, "*rows dim"]:
    """Apply layer normalisation without parameters, in f32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def smooth_l1(error: Float[Array, "*shape"], beta: float = 1.0) -> Float[Array, "*shape"]:
    """Return error^2 / 2 beta where |error| < beta, else |error| - beta / 2 (Baevski et al. 2022, equation 1)."""
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * jnp.square(error) / beta, size - 0.5 * beta)


def between_crops(target: Float[Array, "batch q prototypes"], log_p: Float[Array, "batch v prototypes"]) -> Float[Array, ""]:
    """Return the mean of H(target of crop q, prediction of crop v) over q != v (Caron et al. 2021, equation 3)."""
    cross = -jnp.einsum("bqk,bvk->qv", target, log_p) / len(target)
    others = ~jnp.eye(*cross.shape, dtype=bool)
    return jnp.sum(cross * others) / jnp.sum(others)


def over_patches(target: Scores, log_p: Scores, real: Float[Array, "*rows"]) -> Float[Array, ""]:
    """Return the cross-entropy of patches averaged over each crop's real ones (0 without any), then over crops.

    Zhou et al. 2022, equation 2; the divisor is at least 1, as in the published code.
    """
    cross = -jnp.sum(target * log_p, axis=-1) * real
    return jnp.mean(jnp.sum(cross, axis=-1) / jnp.maximum(jnp.sum(real, axis=-1), 1))


def sinkhorn_knopp(logits: Scores, weight: Float[Array, "*rows"] | None, iterations: int) -> Scores:
    """Return distributions that use all prototypes equally (Caron et al. 2020, section 3.1); rows of weight 0 are ignored.

    Scales exp(logits) so that each prototype has the mass 1 / prototypes and each row 1 / rows, one after the other.
    """
    q = jnp.exp(logits - jnp.max(logits)).reshape(-1, logits.shape[-1])
    if weight is not None:
        q = q * weight.reshape(-1, 1)
    for _ in range(iterations):
        q = q / jnp.maximum(jnp.sum(q, axis=0) * q.shape[1], 1e-30)
        q = q / jnp.maximum(jnp.sum(q, axis=1, keepdims=True), 1e-30)
    return q.reshape(logits.shape)


def principal_components(patches: Float[Array, "b n pixels"], components: int) -> dict[str, Array]:
    """Return "mean" f32[pixels] and "basis" f32[pixels, components], the orthonormal directions of largest variance."""
    flat = patches.reshape(-1, patches.shape[-1]).astype(jnp.float32)
    mean = jnp.mean(flat, axis=0)
    _, directions = jnp.linalg.eigh((flat - mean).T @ (flat - mean))  # in order of increasing variance
    return {"mean": mean, "basis": directions[:, ::-1][:, :components]}
