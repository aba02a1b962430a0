"""Weights for classes of unequal size, and the loss of examples that may have several classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


def balanced_weights(counts: Sequence[int] | Int[np.ndarray, "classes"]) -> Float[np.ndarray, "classes"]:
    """Return examples / (classes * count) of each class, whose mean over the examples is 1 (scikit-learn's "balanced").

    A class without examples has weight 0, and does not count among the classes.
    """
    counts = np.asarray(counts, np.float64)
    return np.divide(counts.sum() / np.count_nonzero(counts), counts, out=np.zeros_like(counts), where=counts > 0)


def positive_weights(counts: Sequence[Sequence[int]] | Int[np.ndarray, "classes 2"]) -> Float[np.ndarray, "classes"]:
    """Return examples without / examples with each class, from `without_and_with`: torch's `pos_weight`.

    With this weight the examples of a class weigh as much together as all others. A class that no example or every example
    has is not weighted.
    """
    without, having = np.asarray(counts, np.float64).T
    return np.divide(without, having, out=np.ones(len(having)), where=(without > 0) & (having > 0))


def binary_cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Shaped[Array, "*batch classes"],
    positive: Float[Array, "..."] | float = 1.0,
) -> Float[Array, "*batch classes"]:
    """Return -positive * target * log(p) - (1 - target) * log(1 - p), p = sigmoid(logits) (torch's BCEWithLogitsLoss)."""
    targets = jnp.asarray(targets, logits.dtype)
    return positive * targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)
