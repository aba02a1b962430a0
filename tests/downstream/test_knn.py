"""kNN against scikit-learn and against the definition."""

import dataclasses

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators import knn
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.knn import KNN, knn_votes, nearest_neighbours
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream.downstream_toys import ToyTask, blobs, toy_params


@pytest.fixture(scope="module")
def fashion():
    from ssl_jax.data.sources.bundled import fashion_mnist

    return [flatten(fashion_mnist(split)) for split in ("train", "test")]


def flatten(source):
    images = source.arrays["image"]
    return images.reshape(len(images), -1).astype(np.float32) / 255, np.asarray(source.labels(), np.int32)


@pytest.mark.parametrize(
    ("bank", "queries", "ks"),
    [(4000, 500, (1, 5, 20, 100)), pytest.param(60000, 10000, (20, 100), marks=pytest.mark.nightly)],
)
def test_agrees_exactly_with_scikit_learn_on_fashion_mnist(fashion, bank, queries, ks):
    """The same predictions for every test image, by votes exp(cos / 0.07) and by plain majority of one neighbour."""
    (x, y), (xt, _) = fashion
    x, y, xt = x[:bank], y[:bank], xt[:queries]
    ours = knn_votes(x, y, xt, 10, ks=ks)
    for k in ks:
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
        reference.fit(x.astype(np.float64), y)
        probability = reference.predict_proba(xt.astype(np.float64))
        np.testing.assert_array_equal(ours[k].argmax(1), probability.argmax(1))
        np.testing.assert_allclose(ours[k] / ours[k].sum(1, keepdims=True), probability, atol=2e-5)


@pytest.mark.parametrize("resident", [0, 2**30])
@pytest.mark.parametrize("blocks", [(1, 7), (3, 16), (64, 1000)])
def test_blocks_change_nothing(blocks, resident, monkeypatch):
    """Nor does it where the bank lies: on the device whole, or read block by block."""
    monkeypatch.setattr(knn, "RESIDENT", resident)
    random = np.random.default_rng(0)
    bank, queries = random.standard_normal((50, 6)).astype(np.float32), random.standard_normal((9, 6)).astype(np.float32)
    similar, index = nearest_neighbours(bank, queries, 7, query_block=blocks[0], bank_block=blocks[1])
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    every = unit(queries) @ unit(bank).T
    np.testing.assert_array_equal(index, np.argsort(-every, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(similar, np.take_along_axis(every, index, 1), atol=1e-6)


@pytest.mark.parametrize("bank_block", [2, 3, 100])
def test_of_equally_similar_neighbours_the_earlier_is_nearer(bank_block):
    bank = np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1)) * np.arange(1, 7, dtype=np.float32)[:, None]
    _, index = nearest_neighbours(bank, np.array([[2.0, 0.0]], np.float32), 3, bank_block=bank_block)
    np.testing.assert_array_equal(index, [[0, 1, 2]])


def test_of_classes_with_equal_votes_the_lower_number_wins():
    bank = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    votes = knn_votes(bank, np.array([2, 1]), bank[:1], 3, ks=(2,))[2]
    assert votes[0, 1] == votes[0, 2] and votes.argmax(1)[0] == 1


def test_leave_one_out_leaves_each_example_out():
    random = np.random.default_rng(1)
    bank = random.standard_normal((40, 5)).astype(np.float32)
    similar, index = nearest_neighbours(bank, None, 4, query_block=7, bank_block=9)
    for i in range(40):
        others = np.delete(np.arange(40), i)
        _, alone = nearest_neighbours(bank[others], bank[i : i + 1], 4)
        np.testing.assert_array_equal(index[i], others[alone[0]])


def test_f64_decides_who_is_last_where_f32_cannot_tell():
    """A dozen neighbours whose similarities f32 rounds to a few values: the nearest are those of exact arithmetic."""
    random = np.random.default_rng(2)
    bank = random.standard_normal((300, 24)).astype(np.float32)
    bank[::25] = bank[:1] + 3e-5 * random.standard_normal((12, 24)).astype(np.float32)
    queries = (bank[:1] + 0.02 * random.standard_normal((30, 24))).astype(np.float32)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    exact = np.argsort(-(unit(queries.astype(np.float64)) @ unit(bank.astype(np.float64)).T), axis=1, kind="stable")
    _, index = nearest_neighbours(bank, queries, 8, exact=(1, 5))
    for k in (1, 5, 8):
        np.testing.assert_array_equal(np.sort(index[:, :k]), np.sort(exact[:, :k]))


def test_a_split_that_queries_itself_leaves_each_example_out():
    """One neighbour of noise says little; the example itself would say everything."""
    data = blobs(noise=1e3)
    encoder = with_baselines(ToyTask(), toy_params(data))
    both = EvaluationData(data.train, dataclasses.replace(data.train))
    assert both.same_split and not data.same_split
    assert flat(KNN(k=1, baselines=False)(encoder, both))["accuracy"] < 0.8
    with pytest.raises(UserError, match="k=300: there are only 299"):
        flat(KNN(k=300)(encoder, both))


def test_the_evaluator_prints_its_baselines_beside():
    data = blobs()
    found = flat(KNN(k=(20, 5))(with_baselines(ToyTask(), toy_params(data)), data))
    assert found["accuracy"] == found["k=20/accuracy"] > 0.9
    assert {"k=5/accuracy", "random_encoder/accuracy", "raw_pixels/accuracy", "majority/accuracy"} <= found.keys()


def test_more_neighbours_than_examples():
    data = blobs(train=30)
    with pytest.raises(UserError, match="k=200: there are only 30 training examples"):
        flat(KNN(k=200)(with_baselines(ToyTask(), toy_params(data)), data))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_neighbours_do_not_depend_on_the_length_of_features(scale):
    """Cosine similarity, also where the squares of the features overflow or vanish in f32; each row may have its own scale."""
    random = np.random.default_rng(0)
    bank, queries = random.standard_normal((80, 6)).astype(np.float32), random.standard_normal((9, 6)).astype(np.float32)
    labels, own = random.integers(0, 3, 80), np.where(random.random((80, 1)) < 0.5, np.float32(scale), np.float32(1))
    plain = knn_votes(bank, labels, queries, 3, ks=(1, 5))
    scaled = knn_votes(bank * own, labels, queries * np.float32(scale), 3, ks=(1, 5))
    for k in plain:
        np.testing.assert_allclose(plain[k], scaled[k], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("split", ["training", "test"])
def test_features_that_are_not_finite_are_refused(bad, split):
    arrays = {"training": np.ones((5, 2), np.float32), "test": np.ones((4, 2), np.float32)}
    arrays[split][2, 1] = bad
    with pytest.raises(UserError, match=f"features of the {split} split of 1 of [54] examples are NaN or infinite"):
        nearest_neighbours(arrays["training"], arrays["test"], 2)


@pytest.mark.slow
def test_queries_divided_over_devices_have_the_same_neighbours(child):
    """On three devices, which divide neither the queries nor the bank."""
    code = """
import jax, numpy as np
from ssl_jax.downstream.evaluators.knn import nearest_neighbours
random = np.random.default_rng(0)
bank, queries = (random.standard_normal((n, 6)).astype(np.float32) for n in (100, 31))
for own in (False, True):
    similar, index = nearest_neighbours(bank, None if own else queries, 5, query_block=7, bank_block=40)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = unit((bank if own else queries).astype(np.float64)) @ unit(bank.astype(np.float64)).T
    if own:
        np.fill_diagonal(expected, -np.inf)
    np.testing.assert_array_equal(index, np.argsort(-expected, axis=1)[:, :5])
print(jax.local_device_count())
"""
    assert child(code, devices=3).strip() == "3"
