"""Metrics against their definitions, evaluated independently; labels from which nothing can be learnt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, top_k_accuracy_score

from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat


def ece_by_definition(probabilities, labels, bins):
    """Sum over bins of |B| / n * |acc(B) - conf(B)|, B the examples with confidence in ((b - 1) / bins, b / bins]."""
    total = 0.0
    for b in range(1, bins + 1):
        inside = [i for i in range(len(labels)) if (b - 1) / bins < max(probabilities[i]) <= b / bins]
        if inside:
            right = sum(int(np.argmax(probabilities[i])) == labels[i] for i in inside) / len(inside)
            sure = sum(max(probabilities[i]) for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(right - sure)
    return total


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 8), st.integers(1, 20))
def test_ece_is_the_published_formula(seed, count, classes, bins):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), count)
    labels = random.integers(0, classes, count)
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(ece_by_definition(probabilities, labels, bins), abs=1e-12)


def test_ece_of_a_calibrated_and_of_an_overconfident_classifier():
    labels = np.array([0, 0, 0, 1])
    assert metrics.ece(np.tile([0.75, 0.25], (4, 1)), labels) == pytest.approx(0)
    assert metrics.ece(np.tile([1.0, 0.0], (4, 1)), labels) == pytest.approx(0.25)


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_top_k_agrees_with_scikit_learn(seed, top):
    random = np.random.default_rng(seed)
    logits, labels = random.standard_normal((40, 7)), random.integers(0, 7, 40)
    expected = top_k_accuracy_score(labels, logits, k=top, labels=np.arange(7))
    assert metrics.accuracy(logits, labels, top) == pytest.approx(expected)


def test_of_equal_logits_the_lower_class_is_said():
    assert metrics.accuracy(np.zeros((3, 4)), np.array([0, 1, 2])) == pytest.approx(1 / 3)
    assert metrics.accuracy(np.zeros((3, 4)), np.array([0, 1, 2]), top=2) == pytest.approx(2 / 3)


def test_accuracy_of_each_class():
    logits = np.eye(3)[[0, 0, 1, 2]]
    found = flat(metrics.classification(logits, np.array([0, 1, 1, 2]), ("cat", "dog", "eel")))
    assert found["accuracy"] == 0.75
    assert (found["per_class/cat"], found["per_class/dog"], found["per_class/eel"]) == (1.0, 0.5, 1.0)
    assert "top5" not in found


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 6))
@pytest.mark.filterwarnings("ignore:A single label|y_pred contains classes")
def test_balanced_accuracy_and_macro_f1_agree_with_scikit_learn(seed, count, classes):
    """Over the classes that occur, whether or not the test split lacks some."""
    random = np.random.default_rng(seed)
    logits, labels = random.standard_normal((count, classes)), random.integers(0, random.integers(1, classes + 1), count)
    found, said = flat(metrics.classification(logits, labels)), logits.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, said))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, said, average="macro", zero_division=0))


@given(st.integers(0, 2**31), st.integers(2, 40), st.booleans())
def test_average_precision_agrees_with_scikit_learn(seed, count, ties):
    """Equal scores are one threshold; NaN for a class without positives."""
    random = np.random.default_rng(seed)
    scores, targets = random.standard_normal((count, 3)), random.random((count, 3)) < 0.4
    scores = np.round(scores) if ties else scores
    targets[:, 2] = False
    found = metrics.average_precision(scores, targets)
    assert np.isnan(found[2])
    for c in range(2):
        if targets[:, c].any():
            assert found[c] == pytest.approx(average_precision_score(targets[:, c], scores[:, c]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_that_is_not_finite_scores(bad):
    """Not as a hit, not as a choice, not as a metric."""
    logits, labels = np.eye(4), np.arange(4)
    logits[1] = bad
    assert metrics.hits(logits, labels).tolist() == [True, False, True, True]
    assert metrics.best([0.2, bad, 0.1]) == 0
    with pytest.raises(ValueError, match="no score is finite"):
        metrics.best([bad, np.nan])
    for call in (lambda: metrics.classification(logits, labels), lambda: metrics.average_precision(logits, logits > 0)):
        with pytest.raises(UserError, match="of 1 of 4 examples are NaN or infinite"):
            call()


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        ([0, 0, 2], [0], ("a", "b", "c"), "no example of class b"),
        ([1, 1], [1], (), "one label only"),
        ([0, 1, 5], [0], ("a", "b"), "label 5, beyond the 2 classes"),
        ([0, 1], [3], ("a", "b"), "test split holds the label 3"),
        ([0, -1], [0], (), "label -1"),
        (None, [0], (), "has no labels"),
        ([0, 1], [], (), "test split is empty"),
    ],
)
def test_bad_labels_are_told_in_one_line(train, test, classes, message):
    array = lambda v: None if v is None else np.array(v, np.int32)
    with pytest.raises(UserError, match=message) as error:
        metrics.check_labels(array(train), array(test), classes)
    assert "\n" not in str(error.value)


@given(st.integers(0, 2**31), st.floats(0.05, 0.5))
def test_the_held_out_part_is_balanced_and_disjoint(seed, share):
    labels = np.arange(200, dtype=np.int32) % 4
    kept, held = metrics.held_out(labels, share, seed)
    assert sorted([*kept, *held]) == list(range(200))
    assert len(set(np.bincount(labels[held], minlength=4))) == 1


def test_a_class_with_one_example_stays_in_training():
    labels = np.array([0, 0, 0, 1], np.int32)
    kept, held = metrics.held_out(labels, 0.5, 0)
    assert 3 in kept and len(held) >= 1
