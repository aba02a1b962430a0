"""Metrics of classification from logits, and checks of labels."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ssl_jax.data.labels import rarest_class
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record, over_examples


def hits(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], top: int = 1
) -> Bool[np.ndarray, "examples"]:
    """Whether each example's class is among the `top` largest logits; of equal logits the lower class goes first.

    An example with a logit that is not finite is a miss.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & before), axis=1)
    return (rank < top) & np.isfinite(logits).all(axis=1)


def accuracy(logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], top: int = 1) -> float:
    """Return the share of `hits`."""
    return float(np.mean(hits(logits, labels, top)))


def best(scores: Sequence[float] | Float[np.ndarray, "candidates"]) -> int:
    """Return the index of the largest finite score, the first of equal ones. Raises ValueError where none is finite."""
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    if not len(finite) or finite.max() == -np.inf:
        raise ValueError("no score is finite")
    return int(np.argmax(finite))


def per_class(
    predicted: Int[np.ndarray, "examples"], labels: Int[np.ndarray, "examples"], classes: int
) -> Float[np.ndarray, "classes"]:
    """Accuracy over the examples of each class (recall); NaN for a class without examples."""
    total = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return right / total


def confusion(
    predicted: Int[np.ndarray, "examples"], labels: Int[np.ndarray, "examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Return how many examples of class (row) were predicted as class (column)."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def f1_of_classes(table: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, "classes"]:
    """2 TP / (2 TP + FP + FN) of each class; 0 for a class that is neither present nor predicted."""
    right, both = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return np.divide(2 * right, both, out=np.zeros(len(table)), where=both > 0)


def macro_f1(table: Int[np.ndarray, "classes classes"]) -> float:
    """Return the mean F1 over the classes that are present or predicted, as scikit-learn's f1_score(average="macro")."""
    return float(f1_of_classes(table)[table.sum(axis=0) + table.sum(axis=1) > 0].mean())


def average_precision(
    scores: Float[np.ndarray, "examples classes"], targets: Bool[np.ndarray, "examples classes"]
) -> Float[np.ndarray, "classes"]:
    """Area under each class's precision-recall curve, sum of (R_n - R_{n-1}) P_n; NaN for a class without positives.

    Equal scores are one threshold. Raises UserError for scores that are not finite.
    """
    check_finite(scores, "scores")
    found = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(targets.any(axis=0)):
        positives, true, rank, _ = _thresholds(scores[:, c], targets[:, c])
        found[c] = np.sum(positives * true / rank) / true[-1]
    return found


def _thresholds(scores: Float[np.ndarray, "examples"], targets: Bool[np.ndarray, "examples"]) -> tuple[np.ndarray, ...]:
    """Return for each distinct score, falling, how many positives have it, how many positives and how many examples have it or
    a higher one (f64[thresholds]); and the threshold of each example."""
    _, threshold = np.unique(-scores, return_inverse=True)
    positives = np.bincount(threshold, targets)
    return positives, np.cumsum(positives), np.cumsum(np.bincount(threshold)).astype(np.float64), threshold


def average_precision_without(
    scores: Float[np.ndarray, "examples classes"], targets: Bool[np.ndarray, "examples classes"]
) -> Float[np.ndarray, "examples classes"]:
    """Return `average_precision` of each class without each example in turn, in the time of a sort.

    An example changes the precision at its own threshold and at the lower ones only: there, one example less has that score or
    a higher one and, without a positive, one positive less.
    """
    found = np.full(scores.shape, np.nan)
    safe = lambda count: np.maximum(count, 1)  # a threshold whose only example is the one left out has no positives
    for c in np.flatnonzero(targets.any(axis=0)):
        own = targets[:, c] > 0
        positives, true, rank, threshold = _thresholds(scores[:, c], own)
        before = np.cumsum(positives * true / rank) - positives * true / rank
        from_here = lambda terms: np.cumsum(terms[::-1])[::-1]
        without_negative = before + from_here(positives * true / safe(rank - 1))
        below = from_here(positives * (true - 1) / safe(rank - 1))
        without_positive = before + below - (true - 1) / safe(rank - 1)  # its threshold has one positive less
        kept = true[-1] - own
        total = np.where(own, without_positive[threshold], without_negative[threshold])
        found[:, c] = np.divide(total, kept, out=np.full(len(own), np.nan), where=kept > 0)
    return found


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


def check_finite(values: Float[np.ndarray, "examples ..."], what: str) -> None:
    """Raise UserError where `values` hold NaN or infinity; `what` names them and who made them."""
    bad = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum())
    if bad:
        raise UserError(f"{what} of {bad:,} of {len(values):,} examples are NaN or infinite; lower the learning rate")


NAMES = ("accuracy", "top5", "balanced_accuracy", "f1_macro", "ece", "per_class*")  # of `classification`


def classification(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"], classes: Sequence[str] = ()
) -> list[Record]:
    """Return "accuracy", "top5" (of more than five classes), "balanced_accuracy", "f1_macro", "ece" and each class's accuracy.

    Balanced accuracy and F1 are means over the classes that occur. Raises UserError for logits that are not finite.
    """
    check_finite(logits, "logits")
    count, n = logits.shape[1], len(labels)
    predicted = logits.argmax(axis=1)
    table = confusion(predicted, labels, count)
    total = table.sum(axis=1)
    present = np.flatnonzero(total)
    recall = np.diag(table)[present] / total[present]
    spread = float(np.sqrt(np.sum(recall * (1 - recall) / total[present])) / len(present))
    found = [over_examples("accuracy", hits(logits, labels), headline=True)]
    if count > 5:
        found.append(over_examples("top5", hits(logits, labels, top=5)))
    found.append(Record("balanced_accuracy", float(recall.mean()), n=n, stderr=spread))
    found.append(Record("f1_macro", macro_f1(table), n=n))
    found.append(Record("ece", ece(softmax(logits.astype(np.float64)), labels), n=n, lower_is_better=True))
    for c, value in zip(present, recall, strict=True):
        stderr = float(np.sqrt(value * (1 - value) / total[c]))
        name = str(classes[c]) if classes else str(c)
        found.append(Record("accuracy", float(value), class_name=name, n=int(total[c]), stderr=stderr))
    return found


SEVERAL = ("mean_average_precision", "subset_accuracy", "per_class_average_precision*", "chance/mean_average_precision")


def balanced_accuracy(logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"]) -> float:
    """Return the mean accuracy over the classes that occur."""
    return float(np.nanmean(per_class(logits.argmax(axis=1), labels, logits.shape[1])))


def mean_average_precision(
    scores: Float[np.ndarray, "examples classes"], targets: Shaped[np.ndarray, "examples classes"]
) -> float:
    """Return the mean of `average_precision` over the classes that have an example; NaN where none has."""
    found = average_precision(scores, targets > 0)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def headline_metric(
    logits: Float[np.ndarray, "examples classes"], labels: Shaped[np.ndarray, "examples ..."], **fields: Any
) -> Record:
    """Return the accuracy, or of several classes per example the mean average precision, with its standard error."""
    if labels.ndim == 1:
        return over_examples("accuracy", hits(logits, labels), **fields)
    stderr = jackknife(average_precision_without(logits, labels > 0))
    return Record("mean_average_precision", mean_average_precision(logits, labels), n=len(labels), stderr=stderr, **fields)


def jackknife(without: Float[np.ndarray, "examples classes"]) -> float | None:
    """Return the standard error of a mean over classes, from their values without each example (Efron and Stein 1981).

    A class that loses its only example (NaN) does not count in that mean. None where no class is left.
    """
    counts = np.isfinite(without).sum(axis=1)
    if not counts.all():
        return None
    values = np.nansum(without, axis=1) / counts
    return float(np.sqrt((len(values) - 1) / len(values) * np.sum((values - values.mean()) ** 2)))


def several_classes(
    logits: Float[np.ndarray, "examples classes"],
    targets: Shaped[np.ndarray, "examples classes"],
    classes: Sequence[str] = (),
    *,
    calibrated: bool = True,
) -> Iterator[Record]:
    """Yield the records of examples with several classes each: "mean_average_precision" with each class's, and that of a
    random order (the classes' shares); and "subset_accuracy", the share of examples whose classes, those of probability above
    0.5, are all right. With calibrated=False `logits` are scores that only rank, and there is no subset accuracy.

    Standard errors of average precisions are by the jackknife over the examples. Raises UserError for logits that are not
    finite.
    """
    check_finite(logits, "logits")
    present = np.flatnonzero(targets.any(axis=0))
    found, without = average_precision(logits, targets > 0), average_precision_without(logits, targets > 0)
    mean = Record("mean_average_precision", float(found[present].mean()), n=len(targets), stderr=jackknife(without))
    yield mean.of(headline=True)
    yield mean.of(value=float(targets[:, present].mean()), baseline="chance", stderr=None)
    if calibrated:
        yield over_examples("subset_accuracy", ((logits > 0) == (targets > 0)).all(axis=1))
    for c in present:
        name, stderr = str(classes[c]) if classes else str(c), jackknife(without[:, [c]])
        count = int(targets[:, c].sum())
        yield Record("average_precision", float(found[c]), class_name=name, n=count, stderr=stderr)


def check_targets(train: np.ndarray, test: np.ndarray, classes: Sequence[str] = ()) -> int:
    """`check_labels` of labels [examples, classes] of 0 and 1."""
    counts, always = np.sum(train, axis=0), np.all(train, axis=0)
    for wrong, what in ((counts == 0, "no example of class"), (always, "no example without class")):
        if wrong.any():
            names = ", ".join(str(classes[i]) if classes else str(i) for i in np.flatnonzero(wrong)[:5])
            raise UserError(f"the training split has {what} {names}; remove the class or add examples")
    if not np.any(test):
        raise UserError("no example of the test split has a class; nothing can be measured on it")
    return train.shape[1]


def check_labels(
    train: Shaped[np.ndarray, "train ..."] | None, test: Shaped[np.ndarray, "test ..."] | None, classes: Sequence[str] = ()
) -> int:
    """Return the number of classes. Raises UserError for labels from which nothing can be learnt.

    Of several classes an example labels are [examples, classes] of 0 and 1.
    """
    for split, labels in (("training", train), ("test", test)):
        if labels is None:
            raise UserError(f"the {split} split has no labels; this evaluator needs them")
        if not len(labels):
            raise UserError(f"the {split} split is empty")
        if np.ndim(labels) == 1 and labels.min() < 0:
            raise UserError(f"the {split} split holds the label {labels.min()}: labels count from 0")
    if np.ndim(train) == 2:
        return check_targets(train, test, classes)
    count = len(classes) or int(max(train.max(), test.max())) + 1
    for split, labels in (("training", train), ("test", test)):
        if labels.max() >= count:
            raise UserError(f"the {split} split holds the label {labels.max()}, beyond the {count} classes of the data")
    present = np.bincount(train, minlength=count)
    if np.count_nonzero(present) < 2:
        only = classes[train[0]] if classes else train[0]
        raise UserError(f"the training split holds one label only ({only}); at least two classes are needed")
    missing = np.flatnonzero(present == 0)
    if len(missing):
        names = ", ".join(str(classes[i]) if classes else str(i) for i in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        first = "; if the labels count from 1, subtract 1" if missing.tolist() == [0] else ""
        raise UserError(f"the training split has no example of class {names}{more}; remove the class or add examples{first}")
    return count


def held_out(
    labels: Int[np.ndarray, "examples"] | Shaped[np.ndarray, "examples classes"], share: float, seed: int
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "held"]]:
    """Splits the training examples, class by class, into those trained on and those that choose; by `seed`, sorted.

    A class with a single example stays in training. An example of several classes counts as one of its rarest.
    """
    random = np.random.default_rng(seed)
    labels = rarest_class(labels) if labels.ndim == 2 else labels
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.append(members[: min(round(share * len(members)) or 1, len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held
