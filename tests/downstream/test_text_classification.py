"""The classifier of sentences: its metrics against scikit-learn, and what it must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators import bag_of_tokens as bag
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.downstream.supervised.text_classification import TextClassification, TextClassificationMetrics, text_metrics
from ssl_jax.downstream.supervised.text_encoder import label_scores
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream import text_toys as toys
from tests.keys import toy_key


def build(info, **task):
    model = task.pop("model", {})
    return TextClassification.from_config(toys.config(dict(name="text_classification") | task, **model), info)


def started(task, batch, seed=0):
    return jax.jit(task.init)(toy_key(seed), batch)


# Metrics ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 10_000))
def test_metrics_agree_with_scikit_learn(classes, count, seed):
    from sklearn import metrics as sk

    random = np.random.default_rng(seed)
    labels, predicted = random.integers(classes, size=(2, count)).astype(np.int32)
    found = text_metrics(predicted, labels, classes)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, predicted), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0))
    assert ("f1" in found) == (classes == 2)
    if classes == 2:
        assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, zero_division=0))


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution():
    logits, labels = jax.random.normal(jax.random.key(0), (5, 4)), jnp.array([0, 1, 2, 3, 1])
    expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.1))
    np.testing.assert_allclose(label_scores(logits, labels, 0.1), expected, rtol=1e-6)


# The task -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(pooling="cls"), dict(pooling="mean"), dict(pooling="last", causal=True)])
def test_padding_changes_nothing(tmp_path, options):
    """More padding, and other tokens in it, give the same logits."""
    train, _ = toys.data(tmp_path)
    task = build(train.info, **options)
    batch = toys.batch_of(train)
    params = started(task, batch)
    read = jax.jit(lambda batch: task.features(params, batch)["logits"])
    logits = read(batch)
    noise = jax.random.randint(jax.random.key(1), batch["tokens"].shape, 0, 256)
    garbage = batch | {"tokens": jnp.where(batch["segments"] > 0, batch["tokens"], noise)}
    np.testing.assert_allclose(read(garbage), logits, rtol=1e-5, atol=1e-5)
    short = int(batch["segments"].sum(axis=1).max())
    cut = batch | {name: batch[name][:, :short] for name in ("tokens", "segments", "token_types")}
    np.testing.assert_allclose(read(cut), logits, rtol=1e-5, atol=1e-5)


def test_the_second_sentence_of_a_pair_is_told_by_its_type(tmp_path):
    (tmp_path / "p.tsv").write_text("a\tb\tlabel\nab\tc\tx\na\tbc\ty\n")
    from ssl_jax.data.text.supervised import labelled_text

    columns = dict(text="a", pair="b")
    data = labelled_text(toys.section(f"tsv:{tmp_path / 'p.tsv'}", columns=columns), split="train", train=True)
    batch = toys.batch_of(data, 2)
    for types, differs in ((2, True), (0, False)):
        task = build(data.info, pooling="mean", model=dict(token_types=types))
        params = started(task, batch)
        flipped = batch | {"token_types": 1 - batch["token_types"]}
        read = jax.jit(lambda batch, task=task, params=params: task.features(params, batch)["logits"])
        same = np.allclose(read(batch), read(flipped), atol=1e-6)
        assert same != differs


def test_dropout_is_on_in_training_only_and_follows_the_position(tmp_path):
    train, _ = toys.data(tmp_path)
    task = build(train.info, dropout=0.5)
    batch = toys.batch_of(train)
    params = started(task, batch)
    loss = jax.jit(task.loss, static_argnames="train")
    values = [
        float(loss(params, batch, jax.random.key(k), train=train)[0])
        for k, train in ((0, True), (1, True), (0, False), (1, False))
    ]
    assert values[0] != values[1] and values[2] == values[3]
    order = jnp.array([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled = {name: value[order] for name, value in batch.items()}
    assert float(loss(params, shuffled, jax.random.key(0), train=True)[0]) == pytest.approx(values[0], rel=1e-5)


def test_it_learns_and_the_evaluator_reads_the_whole_test_split(tmp_path):
    train, test = toys.data(tmp_path)
    task = build(train.info, pooling="mean", dropout=0.0, model=dict(dropout=0.0))
    batch = toys.batch_of(train, train.size)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, jax.random.key(0), train=True)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics["accuracy"]

    params = started(task, batch)
    state = optimizer.init(params)
    for _ in range(60):
        params, state, accuracy = step(params, state)
    found = flat(TextClassificationMetrics(batch_size=7)(Encoder(task, params), EvaluationData(train, test)))
    assert float(accuracy) == 1 and found["accuracy"] == 1 and found["matthews"] == 1
    assert found["majority/accuracy"] == pytest.approx(1 / 3)
    assert found["bag_of_tokens/accuracy"] == 1  # the class is a letter
    lines = task.panels(params, toys.batch_of(train, 3), jax.random.key(0))["predictions"].lines
    assert lines[0].startswith("x (right): ") and "x" in lines[0].split(": ")[1]


def test_frozen_evaluators_take_sentences(tmp_path):
    """Linear probe and kNN over sentence embeddings, the same objects as for images."""
    train, test = toys.data(tmp_path)
    task = build(train.info)
    encoder = with_baselines(task, started(task, toys.batch_of(train)))
    names = ("cls", "mean", "last", "block00/mean", "pooled")
    found = flat(LinearProbe(representation=names, l2=(1e-2,), baselines=False)(encoder, EvaluationData(train, test)))
    assert found["accuracy"] > 0.5
    found = flat(KNN(k=(1, 3))(encoder, EvaluationData(train, test)))
    assert {"accuracy", "random_encoder/accuracy", "bag_of_tokens/accuracy", "majority/accuracy"} <= set(found)
    features = encoder.extract(train, ("mean",))  # the test split is the training split: each text leaves itself out
    unit = features["mean"].astype(np.float64) / np.linalg.norm(features["mean"], axis=1, keepdims=True)
    nearest = np.argmax(unit @ unit.T - 2 * np.eye(len(unit)), axis=1)
    assert found["k=1/accuracy"] == np.mean(features["label"][nearest] == features["label"])


# Starting from a pretext task -----------------------------------------------------------------------------------------


def test_settings_are_checked(tmp_path):
    train, _ = toys.data(tmp_path)
    with pytest.raises(UserError, match="task.pooling='max': must be one of cls, mean, last"):
        build(train.info, pooling="max")
    with pytest.raises(UserError, match="the first token of a causal model has read nothing"):
        build(train.info, causal=True)
    with pytest.raises(UserError, match="has no labels"):
        build(dataclasses.replace(train.info, classes=()))


# The baseline ---------------------------------------------------------------------------------------------------------


def test_the_bag_of_tokens_is_logistic_regression_on_binary_counts(tmp_path):
    from sklearn.linear_model import LogisticRegression

    train, _ = toys.data(tmp_path)
    tokens = bag._tokens(train)
    labels, l2 = train.labels(), 1e-2
    binary = np.zeros((train.size, 262))
    for i, row in enumerate(tokens):
        binary[i, row[row >= 0]] = 1
        assert sorted(row[row >= 0]) == sorted(set(train.rows(np.array([i]))["tokens"][0][: train.arrays["length"][i]]))
    head = bag._fit(np.where(tokens < 0, 262, tokens), labels, np.ones(train.size, np.float32), l2, 262, 3)
    expected = LogisticRegression(C=1 / (l2 * train.size), tol=1e-8, max_iter=10_000).fit(binary, labels)
    ours = jax.nn.softmax(bag._logits(head, np.where(tokens < 0, 262, tokens)))
    np.testing.assert_allclose(ours, expected.predict_proba(binary), atol=5e-3)
