"""Ridge few-shot against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.few_shot import FewShot, draw, ridge, signs
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream.downstream_toys import ToyTask, blobs, toy_params


@pytest.mark.parametrize("examples", [5, 20, 21, 100])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e3])
def test_agrees_with_scikit_learn(examples, strength):
    random = np.random.default_rng(examples)
    x, labels = random.standard_normal((examples, 20)).astype(np.float32), random.integers(0, 3, examples)
    y = signs(labels, 3)
    reference = Ridge(alpha=strength, solver="svd").fit(x.astype(np.float64), y)
    weight, bias = ridge(x, y, [7.0, strength])[1]
    np.testing.assert_allclose(weight, reference.coef_.T, atol=1e-9)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-9)


def test_agrees_with_scikit_learn_on_fashion_mnist():
    from ssl_jax.data.sources.bundled import fashion_mnist

    source = fashion_mnist("train")
    labels = np.asarray(source.labels(), np.int32)
    drawn = draw(labels, 10, 25, seed=0)
    x = source.arrays["image"].reshape(len(labels), -1)[drawn].astype(np.float32) / 255
    y = signs(labels[drawn], 10)
    strengths = [2.0**p for p in range(-10, 21, 5)]
    for strength, (weight, bias) in zip(strengths, ridge(x, y, strengths), strict=True):
        reference = Ridge(alpha=strength).fit(x.astype(np.float64), y)
        np.testing.assert_allclose(x @ weight + bias, reference.predict(x.astype(np.float64)), atol=1e-4)
        np.testing.assert_allclose(weight, reference.coef_.T, atol=1e-4)


def test_draws_hold_the_shots_of_every_class_and_are_nested():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    few, more = draw(labels, 5, 3, seed=4), draw(labels, 5, 10, seed=4)
    assert list(np.bincount(labels[few])) == [3] * 5 and set(few) <= set(more) and len(set(more)) == 50
    assert set(few) != set(draw(labels, 5, 3, seed=5))


def test_more_shots_learn_more_and_baselines_stand_beside():
    data = blobs(noise=120.0)
    found = flat(FewShot(shots=(1, 25))(with_baselines(ToyTask(), toy_params(data)), data))
    assert found["25-shot/accuracy"] > found["1-shot/accuracy"]
    assert {
        "1-shot/stderr",
        "random_encoder/25-shot/accuracy",
        "raw_pixels/1-shot/accuracy",
        "majority/accuracy",
    } <= found.keys()


def test_more_shots_than_examples():
    data = blobs(train=30)
    with pytest.raises(UserError, match="shots=25: class class 0 has only 10 training examples"):
        flat(FewShot(shots=(25,))(with_baselines(ToyTask(), toy_params(data)), data))
