"""Examples with several classes each: splits, text, arrays, and every evaluator that takes them, against scikit-learn."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax import data as kinds
from ssl_jax.data.labels import rarest_class
from ssl_jax.data.pipeline import balanced_subset
from ssl_jax.data.sources import load_source
from ssl_jax.data.splits import held_out
from ssl_jax.data.text.supervised import labelled_text
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators import bag_of_tokens as bag
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.finetune import FineTune, FineTuner, Scratch
from ssl_jax.downstream.evaluators.knn import KNN, knn_votes
from ssl_jax.downstream.evaluators.label_efficiency import LabelEfficiency
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe
from ssl_jax.downstream.evaluators.zero_shot import ZeroShot
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.downstream.supervised.text_classification import TextClassification, TextClassificationMetrics
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream import text_toys
from tests.downstream.downstream_toys import ToyTask, dataset, toy_params
from tests.keys import toy_key


def given(count=60, classes=3, seed=0, ties=False):
    """Scores and targets; the last class is rare, and the first example has none."""
    random = np.random.default_rng(seed)
    targets = random.random((count, classes)) < np.linspace(0.5, 0.1, classes)
    targets[0], targets[1] = False, True
    scores = random.standard_normal((count, classes)) + targets
    return (np.round(scores) if ties else scores), targets


# Metrics ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.filterwarnings("ignore:No positive class")
def test_the_standard_error_is_the_jackknife_of_scikit_learns_average_precision(ties):
    scores, targets = given(25, ties=ties)
    targets[:, 2] = np.arange(25) == 4  # without example 4 the class has none, and the mean is over the other two
    of = lambda rows, c: average_precision_score(targets[rows, c], scores[rows, c]) if targets[rows, c].any() else np.nan
    without = np.array([[of(np.arange(25) != i, c) for c in range(3)] for i in range(25)])
    np.testing.assert_allclose(metrics.average_precision_without(scores, targets), without, rtol=1e-12)
    means = np.nanmean(without, axis=1)
    found = next(metrics.several_classes(scores, targets.astype(np.int32)))
    assert found.metric == "mean_average_precision"
    assert found.stderr == pytest.approx(np.sqrt(24 / 25 * np.sum((means - means.mean()) ** 2)))
    assert metrics.headline_metric(scores, targets.astype(np.int32)).stderr == found.stderr
    assert metrics.jackknife(metrics.average_precision_without(scores[:, :1], targets[:, 2:])) is None


def test_the_standard_error_is_the_spread_over_samples():
    """Of 300 independent test splits of 200 examples, within a tenth."""
    found = [metrics.headline_metric(*given(200, seed=i)) for i in range(300)]
    assert np.mean([one.stderr for one in found]) == pytest.approx(np.std([one.value for one in found]), rel=0.1)


# Splits -------------------------------------------------------------------------------------------------------------


def test_splits_are_stratified_by_the_rarest_class():
    _, targets = given(2000, classes=6)
    targets[:, 5] = np.arange(2000) % 500 == 1  # four examples
    counts = targets.sum(axis=0)
    rarest = rarest_class(targets)
    assert rarest[0] == -1 and all(targets[i, rarest[i]] for i in range(1, 2000) if targets[i].any())
    assert (counts[rarest[1]] <= counts[targets[1]]).all()
    for rows in (metrics.held_out(targets, 0.25, 3)[1], balanced_subset(targets, fraction=0.25, seed=3)):
        assert targets[rows, 5].sum() == 1 and len(rows) == pytest.approx(500, abs=6)
        np.testing.assert_allclose(targets[rows].sum(axis=0) / counts, 0.25, atol=0.05)
    assert set(balanced_subset(targets, fraction=0.1, seed=3)) < set(balanced_subset(targets, fraction=0.25, seed=3))


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_every_class_of_a_held_out_split_has_an_example_to_train_on(share):
    targets = np.repeat(np.eye(100, dtype=bool), 2, axis=0) | (np.arange(200)[:, None] % 7 == np.arange(100))
    held = held_out([b"%d" % i for i in range(200)], share, targets)
    assert targets[~held].any(axis=0).all()
    assert targets[held].any(axis=0).mean() > 0.9  # but for classes whose only candidate is another's last example


# Arrays -------------------------------------------------------------------------------------------------------------


def test_an_npz_has_a_matrix_of_0_and_1(tmp_path):
    images, targets = np.zeros((4, 2, 2, 1), np.uint8), np.array([(0, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0)])
    for i, dtype in enumerate((np.int64, bool, np.uint8)):
        np.savez(tmp_path / f"{i}.npz", image=images, label=targets.astype(dtype), classes=np.array(["a", "b", "c"]))
        data = kinds.build("images", dict(train=f"npz:{tmp_path / f'{i}.npz'}", batch_size=2, holdout=0.0))
        assert data.info.classes == ("a", "b", "c") and data.info.shapes["label"].shape == (3,)
        np.testing.assert_array_equal(data.labels(), targets)
        batch = data.on_device(data.rows(np.arange(4)), None)
        np.testing.assert_array_equal(batch["label"], targets)
    for labels, classes, message in (
        (targets * 2, "abc", "example 0 has 2 in column 1 of its labels; expected a class number an example, or"),
        (targets, "ab", "its labels have 3 columns, but there are 2 classes"),
        (targets / 1.0, "abc", r"label is float64\[4, 3\], expected whole numbers"),
    ):
        np.savez(tmp_path / "bad.npz", image=images, label=labels, classes=np.array(list(classes)))
        with pytest.raises(UserError, match=message):
            load_source(f"npz:{tmp_path / 'bad.npz'}")


# Text ---------------------------------------------------------------------------------------------------------------

TEXTS = ("ab x", "d", "x y a", "y", "b z z")
NAMES = (("red", "blue"), (), ("blue",), ("green",), ("green", "red"))
TARGETS = ((1, 0, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1))  # blue, green, red
WRITTEN = {
    "cells.csv": "text,label\n" + "".join(f'{t},"{", ".join(n)}"\n' for t, n in zip(TEXTS, NAMES, strict=True)),
    "lists.jsonl": "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in zip(TEXTS, NAMES, strict=True)),
}


def text(path, name, **changes):
    (path / name).write_text(WRITTEN[name])
    uri = f"{name.rpartition('.')[2]}:{path / name}"
    return labelled_text(text_toys.section(uri, label_separator=",") | changes, split="train", train=False)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_table_of_texts_with_several_classes(tmp_path, name):
    data = text(tmp_path, name)
    assert data.info.classes == ("blue", "green", "red") and data.info.shapes["label"].shape == (3,)
    np.testing.assert_array_equal(data.labels(), TARGETS)
    np.testing.assert_array_equal(text_toys.batch_of(data, 5)["label"], TARGETS)


def test_parquet_has_texts_with_lists_of_class_numbers(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = {"label": {"feature": {"names": ["blue", "green", "red"], "_type": "ClassLabel"}, "_type": "List"}}
    table = pyarrow.table({"text": TEXTS, "label": [[2, 0], [], [0], [1], [1, 2, None]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": info}})})
    pq.write_table(table, tmp_path / "t.parquet")
    section = text_toys.section(f"parquet:{tmp_path / 't.parquet'}")
    data = labelled_text(section | dict(label_separator=","), split="train", train=False)
    np.testing.assert_array_equal(data.labels(), TARGETS)
    with pytest.raises(UserError, match=r"label is .*expected one class; for several set data.label_separator"):
        labelled_text(section, split="train", train=False)


def test_a_class_that_training_does_not_have_is_named_or_left_out(tmp_path):
    (tmp_path / "test.csv").write_text('text,label\na,red\nb,"blue, pink"\n')
    uri = f"csv:{tmp_path / 'test.csv'}"
    classes = dict(test=uri, classes=("red", "blue"))
    read = lambda **more: labelled_text(text_toys.section(uri, label_separator=",") | classes | more, split="test", train=False)
    with pytest.raises(UserError, match="line 3: label 'pink' does not occur in training"):
        read()
    np.testing.assert_array_equal(read(unknown_classes="skip").labels(), [(1, 0), (0, 1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_separator=""), "must be at least one character"),
        (dict(label_separator=None), "expected one class; for several set data.label_separator"),
    ],
)
def test_what_texts_of_several_classes_refuse(tmp_path, options, message):
    (tmp_path / "lists.jsonl").write_text(WRITTEN["lists.jsonl"])
    section = text_toys.section(f"jsonl:{tmp_path / 'lists.jsonl'}", label_separator=",") | options
    with pytest.raises(UserError, match=message):
        labelled_text(section, split="train", train=True)


def test_class_weights_of_texts_with_several_classes(tmp_path):
    """Weighted by the counts of the examples trained on: torch's loss with `pos_weight`."""
    torch = pytest.importorskip("torch")
    (tmp_path / "cells.csv").write_text(WRITTEN["cells.csv"])
    section = dict(name="text_classification", pooling="mean", dropout=0.0, class_weights="balanced")
    settings = text_toys.section(f"csv:{tmp_path / 'cells.csv'}", label_separator=",")
    data = labelled_text(settings, split="train", train=True, task_section=section)
    assert data.info.extra["class_counts"] == [[3, 2]] * 3
    task = TextClassification.from_config(text_toys.config(section, dropout=0.0), data.info)
    batch = text_toys.batch_of(data, 5)
    params = jax.jit(task.init)(jax.random.key(0), batch)
    logits = torch.tensor(np.asarray(jax.jit(task.features)(params, batch)["logits"]))
    target = torch.tensor(np.asarray(batch["label"]), dtype=torch.float32)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.5, 1.5, 1.5]))(logits, target)
    loss, _ = jax.jit(functools.partial(task.loss, train=True))(params, batch, jax.random.key(1))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_and_the_metrics_of_texts_with_several_classes(tmp_path):
    """Binary cross-entropy, smoothed towards a half; average precision of the head, and of scikit-learn's bag of tokens."""
    data = text(tmp_path, "cells.csv")
    config = text_toys.config(dict(name="text_classification", pooling="mean", dropout=0.0, label_smoothing=0.2), dropout=0.0)
    task, batch, y = TextClassification.from_config(config, data.info), text_toys.batch_of(data, 5), np.array(TARGETS)
    params = jax.jit(task.init)(toy_key(0), batch)
    logits = np.asarray(jax.jit(task.features)(params, batch)["logits"], np.float64)
    p = 1 / (1 + np.exp(-logits))
    for train, soft in ((False, y), (True, y * 0.8 + 0.1)):
        expected = -np.mean(soft * np.log(p) + (1 - soft) * np.log(1 - p))
        loss, found = jax.jit(functools.partial(task.loss, train=train))(params, batch, jax.random.key(1))
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert float(found["subset_accuracy"]) == pytest.approx(((p > 0.5) == y).all(axis=1).mean())
    assert -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) == pytest.approx(
        np.mean([log_loss(y[:, c], p[:, c]) for c in range(3)])
    )
    found = flat(TextClassificationMetrics(batch_size=2)(Encoder(task, params), EvaluationData(data, data)))
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(y, logits, average="macro"))
    scores = bag.bag_of_tokens(data, data, 3)
    assert found["bag_of_tokens/mean_average_precision"] == pytest.approx(average_precision_score(y, scores, average="macro"))
    said = [", ".join(np.array(data.info.classes)[row > 0]) or "none" for row in logits]
    lines = task.panels(params, batch, jax.random.key(0))["predictions"].lines
    assert lines[1] == f"{said[1]} ({'right' if said[1] == 'none' else 'wrong, it is none'}): [CLS]d[SEP]"
    assert lines[4].startswith(f"{said[4]} (" + ("right" if said[4] == "green, red" else "wrong, it is green, red"))


def test_a_bag_of_tokens_of_several_classes_is_one_logistic_regression_each(tmp_path):
    random = np.random.default_rng(0)
    tokens = np.stack([np.sort(random.permutation(8)[:4]) for _ in range(80)])
    binary = np.zeros((80, 8))
    np.put_along_axis(binary, tokens, 1, axis=1)
    y = (binary[:, :3] + binary[:, 3:6] + random.random((80, 3)) > 1.2).astype(np.int32)
    head = bag._fit(tokens, y, np.ones(80, np.float32), 1e-2, 8, 3)
    for c in range(3):
        expected = LogisticRegression(C=1 / (1e-2 * 80), tol=1e-8, max_iter=10_000).fit(binary, y[:, c])
        np.testing.assert_allclose(np.asarray(bag._logits(head, tokens))[:, c], expected.decision_function(binary), atol=5e-3)


# Evaluators ---------------------------------------------------------------------------------------------------------


def test_votes_of_several_classes_are_scikit_learns_probabilities():
    random = np.random.default_rng(0)
    bank, queries = random.standard_normal((50, 6)).astype(np.float32), random.standard_normal((20, 6)).astype(np.float32)
    labels = given(50)[1].astype(np.int32)
    votes = knn_votes(bank, labels, queries, 3, ks=(3, 7), temperature=0.1)
    for k in (3, 7):
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
        expected = np.stack([p[:, 1] for p in reference.fit(bank, labels).predict_proba(queries)], axis=1)
        np.testing.assert_allclose(votes[k] + 0.5, expected, atol=1e-5)


def toys(count=60):
    """Images with a bright row for each of their classes."""
    random, targets = np.random.default_rng(0), given(count)[1].astype(np.int32)
    images = random.integers(0, 60, (count, 8, 8, 1))
    images[:, :6] += 150 * np.repeat(targets, 2, axis=1)[:, :, None, None]
    return images.astype(np.uint8), targets


def test_knn_measures_average_precision():
    images, targets = toys()
    names = ("red", "green", "blue")
    data = EvaluationData(dataset(images, targets, names), dataset(images[:30], targets[:30], names, "memory:test"))
    encoder = with_baselines(ToyTask(), toy_params(data))
    found = flat(KNN(k=(5, 1))(encoder, data))
    train, test = (encoder.extract(split, ("mean",))["mean"] for split in (data.train, data.test))
    for k in (5, 1):
        scores = knn_votes(train, targets, test, 3, ks=(k,))[k]
        expected = average_precision_score(targets[:30], scores, average="macro")
        assert found[f"k={k}/mean_average_precision"] == pytest.approx(expected)
    assert found["mean_average_precision"] == found["k=5/mean_average_precision"]
    assert found["chance/mean_average_precision"] == pytest.approx(targets[:30].mean())
    assert found["raw_pixels/k=1/mean_average_precision"] == 1 and "majority/accuracy" not in found


@pytest.mark.parametrize("protocol", ["grid", "mae"])
def test_probes_by_gradient_descent_measure_average_precision(protocol):
    """Of the test split, and in selection among the rates of a grid."""
    images, targets = toys()
    names = ("red", "green", "blue")
    data = EvaluationData(dataset(images, targets, names), dataset(images[:30], targets[:30], names, "memory:test"))
    encoder = with_baselines(ToyTask(), toy_params(data))
    rates = (1e-6, 1.0) if protocol == "grid" else (30.0,)
    evaluator = LinearProbe(protocol=protocol, epochs=20, warmup_epochs=2, batch_size=20, learning_rates=rates)
    evaluator.check(data)
    found = flat(evaluator(encoder, data))
    train, test = (encoder.extract(split, ("mean",))["mean"] for split in (data.train, data.test))
    choice = probe([train], targets, 3, evaluator)[0]
    expected = average_precision_score(targets[:30], choice.head(test), average="macro")
    assert found["mean_average_precision"] == pytest.approx(expected)
    assert found["raw_pixels/mean_average_precision"] > 0.9 and "majority/accuracy" not in found
    held = metrics.held_out(targets, 0.1, 0)[1]
    if protocol == "grid":
        measured = average_precision_score(targets[held], choice.head(train[held]), average="macro")
        assert found["held_out_mean_average_precision"] == pytest.approx(measured)


def test_zero_shot_classification_of_several_classes_ranks_the_images_of_each(monkeypatch):
    images, targets = toys(20)
    names, random = ("red", "green", "blue"), np.random.default_rng(5)
    data = EvaluationData(dataset(images, targets, names), dataset(images, targets, names, "memory:test"))
    found, texts = random.standard_normal((20, 4)).astype(np.float32), random.standard_normal((3, 4)).astype(np.float32)

    class Embedded(Encoder):
        def extract(self, dataset, names, batch_size=256):
            return {"image_embedding": found, "label": targets}

    monkeypatch.setattr("ssl_jax.downstream.evaluators.zero_shot.embed_texts", lambda *_: texts)
    values = flat(ZeroShot()(Embedded(None), data))
    scores = found @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    assert values["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    assert values["per_class_average_precision/green"] == pytest.approx(average_precision_score(targets[:, 1], scores[:, 1]))
    assert values["chance/mean_average_precision"] == pytest.approx(targets.mean())
    assert not any("accuracy" in name for name in values)


def test_a_probe_with_class_weights_is_selected_by_balanced_accuracy():
    """Nine tenths are of one class: the strongest penalty has the highest accuracy, a weaker one the balanced."""
    random = np.random.default_rng(1)
    labels = (np.arange(400) % 10 == 0).astype(np.int32)
    x = (random.standard_normal((400, 5)) + 0.8 * labels[:, None]).astype(np.float32)
    settings = LinearProbe(l2=(10.0, 1e-2), class_weights="balanced", held_out=0.3)
    choice = probe([x], labels, 2, settings)[0]
    kept, held = metrics.held_out(labels, 0.3, 0)
    z = (x - x.mean(0)) / x.std(0)
    scores = []
    for l2 in (10.0, 1e-2):
        weights = np.where(labels == 1, 5.0, 5 / 9)[kept]
        reference = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-8).fit(z[kept], labels[kept], weights)
        scores.append(balanced_accuracy_score(labels[held], reference.predict(z[held])))
    assert choice.score == pytest.approx(max(scores)) and choice.settings["l2"] == (10.0, 1e-2)[int(np.argmax(scores))]
    logits = random.standard_normal((50, 3))
    assert metrics.balanced_accuracy(logits, labels[:50]) == balanced_accuracy_score(labels[:50], logits.argmax(axis=1))


@pytest.mark.slow
def test_fine_tuning_and_label_efficiency_measure_average_precision(tmp_path, monkeypatch):
    images, targets = toys()
    np.savez(tmp_path / "a.npz", image=images, label=targets)
    section = dict(train=f"npz:{tmp_path / 'a.npz'}", test=f"npz:{tmp_path / 'a.npz'}", batch_size=16)
    model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    config = ConfigDict(dict(task={}, model=model, data=section, training=dict(duration="1 epochs")))
    train, test = (kinds.build("images", section, split=split, train=False) for split in ("train", "test"))
    data, seen, logits = EvaluationData(train, test, config=config), [], FineTuner.logits
    monkeypatch.setattr(FineTuner, "logits", lambda self, *rest: seen.append(logits(self, *rest)) or seen[-1])
    recipe = dict(training=dict(duration="4 steps"), optimizer=dict(name="adamw", lr=1e-3), batch_size=16)
    scratch = Scratch(**recipe, learning_rates=(1e-3, 3e-3))
    finetune = FineTune(**recipe, scratch=scratch)
    finetune.check(data)
    source = FineTuner(finetune, data)
    params = source.fit(np.arange(60), seed=5, steps=1)
    encoder = Encoder(source.task, params)
    found = flat(finetune(encoder, data))
    expected = [average_precision_score(y, scores, average="macro") for scores, y in seen]
    assert len(expected) == 4  # fine-tuned, two rates on a fifth, from scratch
    assert found["mean_average_precision"] == pytest.approx(expected[0])
    assert found["scratch/mean_average_precision"] == pytest.approx(expected[-1])
    seen.clear()
    evaluator = LabelEfficiency(
        fractions=(0.5,), seeds=1, finetune=source.recipe, scratch=None, linear_probe=LinearProbe(l2=(1e-2,))
    )
    evaluator.check(data)
    found = flat(evaluator(encoder, data))
    assert found["50%/finetune/mean"] == pytest.approx(average_precision_score(seen[0][1], seen[0][0], average="macro"))
    assert 0 < found["50%/linear_probe/mean"] <= 1 and "majority/accuracy" not in found
