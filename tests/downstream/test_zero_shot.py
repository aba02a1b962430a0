"""Zero-shot classification against a plain evaluation of its definition, and its baselines."""

import numpy as np
import pytest

from ssl_jax.data import pairs
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.zero_shot import ZeroShot, texts_of
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.data.test_pairs import section


class Oracle(Encoder):
    """Its text vectors say which class a prompt names, its image vectors the true class with the probability `right`."""

    def __init__(self, data, right=1.0):
        super().__init__(None)
        labels, classes = data.test.labels(), len(data.classes)
        random = np.random.default_rng(0)
        self.seen = np.where(random.random(len(labels)) < right, labels, random.integers(classes, size=len(labels)))
        self.images, self.labels = np.eye(classes, dtype=np.float32)[self.seen], labels

    def extract(self, dataset, names, batch_size=256):
        return {"image_embedding": self.images, "label": self.labels}


@pytest.fixture(scope="module")
def data():
    build = lambda split: pairs.build(section(), split=split, train=False)
    return EvaluationData(build("train"), build("test"))


def run(monkeypatch, data, encoder, vectors=None, **settings):
    """The evaluator's values; each prompt's vector is its class's, unless `vectors` says otherwise."""
    prompts = []

    def embed(encoder, info, texts, batch_size):
        prompts.extend(texts)
        own = texts_of(data.classes, settings.get("class_texts") or data.test.info.extra["class_texts"])
        of = {template.replace("{}", t): i for i, ts in enumerate(own) for t in ts for template in evaluator.templates}
        return np.eye(8, dtype=np.float32)[[of[text] for text in texts]] if vectors is None else vectors(texts)

    monkeypatch.setattr("ssl_jax.downstream.evaluators.zero_shot.embed_texts", embed)
    evaluator = ZeroShot(**settings)
    return flat(evaluator(encoder, data)), prompts


def test_accuracy_is_that_of_the_nearest_class(monkeypatch, data):
    for right in (1.0, 0.4):
        oracle = Oracle(data, right)
        found, prompts = run(monkeypatch, data, oracle, templates=("{}", "an emoji of {}"))
        assert found["accuracy"] == pytest.approx(np.mean(oracle.seen == oracle.labels))
        assert "an emoji of animal bird" in prompts and len(prompts) == len(set(prompts))
    counts = np.bincount(data.test.labels())
    assert found["chance/accuracy"] == 1 / 8
    assert found["majority/accuracy"] == counts[np.argmax(np.bincount(data.train.labels()))] / counts.sum()


def test_classes_are_normalised_means_of_their_prompts(monkeypatch, data):
    random = np.random.default_rng(1)
    found, _ = run(monkeypatch, data, Oracle(data), vectors=lambda texts: random.standard_normal((len(texts), 8)))
    vectors = ZeroShot().classifier(Oracle(data), data)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_model_that_tells_nothing_apart_is_at_chance(monkeypatch, data):
    """Equal scores everywhere are one hit in eight, not a full score."""
    oracle = Oracle(data)
    oracle.images = np.ones_like(oracle.images)
    found, _ = run(monkeypatch, data, oracle, vectors=lambda texts: np.eye(8)[[0] * len(texts)])
    assert found["accuracy"] == pytest.approx(1 / 8) and found["top5/accuracy"] == pytest.approx(5 / 8)


def test_a_class_is_its_name_where_no_text_is_given():
    assert texts_of(("food-drink", "great_white"), {}) == [("food drink",), ("great white",)]
    assert texts_of(("a", "b"), {"b": ["x", "y"]}) == [("a",), ("x", "y")]


def test_no_classes_and_no_labels_are_told_in_one_line(tmp_path):
    from tests.data.test_pairs import ROWS, table

    uri = table(tmp_path, ROWS)
    dataset = pairs.build(section(train=uri, test=uri, image_size=8), split="test", train=False)
    assert ZeroShot().missing_labels(EvaluationData(dataset, dataset)) == f"{uri} has no labels"
    with pytest.raises(UserError, match="has no classes; give a source with labels"):
        ZeroShot().classifier(Encoder(None), EvaluationData(dataset, dataset))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(templates=()), "templates=(): give at least one"),
        (dict(templates=("a photo",)), "templates: 'a photo' has no {}"),
        (dict(class_texts={"animals-nature": ()}), "class_texts.animals-nature=(): must be a text"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError) as caught:
        ZeroShot(**settings)
    assert str(caught.value).startswith(message)


def test_an_unknown_class_is_named():
    with pytest.raises(UserError, match="class_texts.dogs: there is no such class; the classes are cat, dog"):
        texts_of(("cat", "dog"), {"dogs": "x"})
