"""Metrics of classification from logits, and checks of labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.errors import UserError


def accuracy(logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], top: int = 1) -> float:
    """The share of examples whose class is among the `top` largest logits; of equal logits the lower class goes first."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & before), axis=1)
    return float(np.mean(rank < top))


def per_class(
    predicted: Int[np.ndarray, "examples"], labels: Int[np.ndarray, "examples"], classes: int
) -> Float[np.ndarray, "classes"]:
    """Accuracy over the examples of each class (recall); NaN for a class without examples."""
    total = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return right / total


def softmax(logits: Float[np.ndarray, "examples classes"]) -> Float[np.ndarray, "examples classes"]:
    z = np.exp(logits - logits.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def ece(probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], bins: int = 15) -> float:
    """Expected calibration error: sum over `bins` equal bins (a, b] of confidence, of share * |accuracy - confidence|.

    Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def classification(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], classes: Sequence[str] = ()
) -> dict[str, float]:
    """ "accuracy", "top5" (of more than five classes), "ece" and "per_class/<name>"."""
    found = {"accuracy": accuracy(logits, labels)}
    if logits.shape[1] > 5:
        found["top5"] = accuracy(logits, labels, top=5)
    found["ece"] = ece(softmax(logits.astype(np.float64)), labels)
    names = classes or tuple(str(i) for i in range(logits.shape[1]))
    for name, value in zip(names, per_class(logits.argmax(axis=1), labels, logits.shape[1]), strict=True):
        if np.isfinite(value):
            found[f"per_class/{name}"] = float(value)
    return found


def check_labels(
    train: Int[np.ndarray, "train"] | None, test: Int[np.ndarray, "test"] | None, classes: Sequence[str] = ()
) -> int:
    """The number of classes. UserError, one line, for labels from which nothing can be learnt."""
    for split, labels in (("training", train), ("test", test)):
        if labels is None:
            raise UserError(f"the {split} split has no labels; this evaluator needs them")
        if not len(labels):
            raise UserError(f"the {split} split is empty")
        if labels.min() < 0:
            raise UserError(f"the {split} split holds the label {labels.min()}: labels count from 0")
    count = len(classes) or int(max(train.max(), test.max())) + 1
    for split, labels in (("training", train), ("test", test)):
        if labels.max() >= count:
            raise UserError(f"the {split} split holds the label {labels.max()}, beyond the {count} classes of the data")
    present = np.bincount(train, minlength=count)
    if np.count_nonzero(present) < 2:
        raise UserError(f"the training split holds one label only ({train[0]}); at least two classes are needed")
    missing = np.flatnonzero(present == 0)
    if len(missing):
        names = ", ".join(str(classes[i]) if classes else str(i) for i in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"the training split has no example of class {names}{more}; remove the class or add examples")
    return count


def held_out(
    labels: Int[np.ndarray, "examples"], share: float, seed: int
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "held"]]:
    """Splits the training examples, class by class, into those trained on and those that choose; by `seed`, sorted.

    A class with a single example stays in training.
    """
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.append(members[: min(round(share * len(members)) or 1, len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held
