"""The bag-of-tokens baseline: logistic regression on the set of tokens that occur in a text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ssl_jax.downstream.metrics.classification import accuracy, best, held_out, mean_average_precision

STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the penalty, l2 / 2 |W|^2 on the mean cross entropy


def bag_of_tokens(train, test, classes: int, *, held: float = 0.1, seed: int = 0) -> Float[np.ndarray, "test classes"]:
    """Return logits of the texts of `test`, from a model fitted to `train` (both data sets of labelled text).

    The model is multinomial, or where a text may have several classes one binary model per class. The penalty is selected on a
    held-out part of `train`, then the model is fitted to all of it. Features are binary: for short texts the presence of a
    token is more informative than its count (Wang & Manning 2012, section 3).
    """
    labels = train.labels()
    x, queries = _tokens(train), _tokens(test)
    known = np.unique(x[x >= 0])  # tokens that do not occur in training are ignored
    vocabulary = len(known)
    x, queries = (np.where(np.isin(t, known), np.searchsorted(known, t), vocabulary) for t in (x, queries))
    _, held_rows = held_out(labels, held, seed)
    chosen, measure = STRENGTHS[0], accuracy if labels.ndim == 1 else mean_average_precision
    if len(held_rows):
        weights = np.ones(len(labels), np.float32)
        weights[held_rows] = 0
        fit = lambda l2: _fit(x, labels, weights, l2, vocabulary, classes)
        scores = [measure(np.asarray(_logits(fit(l2), x[held_rows])), labels[held_rows]) for l2 in STRENGTHS]
        chosen = STRENGTHS[best(np.nan_to_num(scores))]
    head = _fit(x, labels, np.ones(len(labels), np.float32), chosen, vocabulary, classes)
    return np.asarray(_logits(head, queries))


def _tokens(dataset) -> Int[np.ndarray, "texts length"]:
    """Return each text's distinct tokens; -1 for padding and repetitions."""
    raw = dataset.rows(np.arange(dataset.size))
    tokens = np.sort(np.where(np.arange(raw["tokens"].shape[1])[None] < raw["length"][:, None], raw["tokens"], -1), axis=1)
    return np.where(np.diff(tokens, axis=1, prepend=-2) == 0, -1, tokens)


@jax.jit
def _logits(head, tokens: Int[Array, "texts length"]) -> Float[Array, "texts classes"]:
    weight, bias = head
    table = jnp.concatenate([weight, jnp.zeros_like(weight[:1])])
    return jnp.sum(table[tokens], axis=1) + bias


@functools.partial(jax.jit, static_argnames=("vocabulary", "classes", "iterations"))
def _fit(tokens, labels, weights, l2, vocabulary: int, classes: int, iterations: int = 60):
    weights = weights / jnp.sum(weights)

    def objective(head):
        logits = _logits(head, tokens)
        if labels.ndim == 2:
            loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(weights * loss) + l2 / 2 * jnp.sum(jnp.square(head[0]))

    optimizer = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry):
        head, state, i, _ = carry
        value, grad = value_and_grad(head, state=state)
        updates, state = optimizer.update(grad, state, head, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(head, updates), state, i + 1, optax.tree.norm(grad)

    head = jnp.zeros((vocabulary, classes)), jnp.zeros(classes)
    carry = head, optimizer.init(head), 0, jnp.inf
    return jax.lax.while_loop(lambda c: (c[2] < iterations) & (c[3] > 1e-4), step, carry)[0]
