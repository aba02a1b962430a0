"""Evaluators on data with defects agree with NumPy and scikit-learn on the examples that can be read, from every source.

The oracle knows nothing of sources: it is given the pictures and classes that were written, without the unreadable and the
unlabelled ones. A failure means that an evaluator scored an example that is not there, or against another's label.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.few_shot import FewShot
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.task import Task
from tests.data.test_defects import KINDS, LEVELS, data, picture, write

NAMES = sorted(LEVELS)
STATES = st.sampled_from(["good", "good", "good", "bad", "unlabelled"])
EXAMPLES = st.lists(st.tuples(st.sampled_from(NAMES), STATES), min_size=6, max_size=12)
KERNEL = np.asarray(jax.random.normal(jax.random.key(0), (48, 5)))


class Projected(Task):
    """A fixed projection of the pixels."""

    name, data = "projected", "images"

    def init(self, key, batch):
        return {}

    def features(self, params, batch):
        x = batch["image"].reshape(len(batch["image"]), -1) @ jnp.asarray(KERNEL)
        return {"mean": jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)}  # no picture has a feature of length 0


def readable(kind, examples):
    """Features and classes of what can be read, in the source's order: by class in a folder."""
    order = sorted(range(len(examples)), key=lambda i: examples[i][0]) if kind == "folder" else range(len(examples))
    bad = {"bad"} if kind != "npz" else set()  # an array has no unreadable file
    unlabelled = {"unlabelled"} if kind != "folder" else set()  # a folder's label is its name
    found = [(picture(LEVELS[examples[i][0]], i), examples[i][0]) for i in order if examples[i][1] not in bad | unlabelled]
    pixels = np.array([image for image, _ in found], np.float64).reshape(len(found), -1) / 255
    x = np.concatenate([pixels @ KERNEL.astype(np.float64), np.ones((len(found), 1))], axis=1)
    return x, np.array([NAMES.index(name) for _, name in found])


def neighbours(x, y, queries, k):
    """Weighted votes of the k nearest by cosine (Wu et al. 2018, equation 12)."""
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    similarity = unit(queries) @ unit(x).T
    votes = np.zeros((len(queries), len(NAMES)))
    for row, nearest in enumerate(np.argsort(-similarity, axis=1)[:, :k]):
        np.add.at(votes[row], y[nearest], np.exp(similarity[row, nearest] / 0.07))
    return votes.argmax(1)


def accuracy_of(evaluator, encoder, pair):
    return next(r.value for r in evaluator(encoder, pair) if r.metric == "accuracy" and r.baseline is None and not r.class_name)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=2,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(train=EXAMPLES, test=EXAMPLES)
def test_evaluators_agree_with_the_readable_examples(kind, train, test):
    """Every class is in the training split twice; the test split may lack some."""
    train = [(name, "good") for name in NAMES for _ in range(4)] + train
    test = [(NAMES[0], "good"), (NAMES[2], "good"), *test]
    with tempfile.TemporaryDirectory() as folder:
        uris = [write(kind, Path(folder) / split, examples) for split, examples in (("train", train), ("test", test))]
        splits = [data(*uris, split=split, on_bad_example="skip") for split in ("train", "test")]
        encoder, pair = Encoder(Projected(), {}, None), EvaluationData(*splits)
        (x, y), (xt, yt) = readable(kind, train), readable(kind, test)
        for dataset, features, labels in ((splits[0], x, y), (splits[1], xt, yt)):
            found = encoder.extract(dataset, ("mean",))
            np.testing.assert_allclose(found["mean"], features, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(found["label"], labels)
        knn = accuracy_of(KNN(k=3, baselines=False), encoder, pair)
        assert knn == pytest.approx(np.mean(neighbours(x, y, xt, 3) == yt), abs=1e-6)
        probe = accuracy_of(LinearProbe(l2=(1e-2,), baselines=False), encoder, pair)
        x, xt = x[:, :-1], xt[:, :-1]  # without the constant
        scaled = (x - x.mean(0)) / x.std(0)
        reference = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-8, max_iter=5000).fit(scaled, y)
        assert abs(probe - reference.score((xt - x.mean(0)) / x.std(0), yt)) <= 1.01 / len(yt)  # a tie may go either way
        shots = list(FewShot(shots=(2,), baselines=False)(encoder, pair))
        assert all(np.isfinite(r.value) for r in shots) and shots
