"""Examples that have several classes each, and classes of unequal size: from the table to the metrics, against scikit-learn."""

import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import accuracy_score, average_precision_score, log_loss
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

import ssl_jax
from ssl_jax import cli
from ssl_jax.config import look_up
from ssl_jax.data import build
from ssl_jax.data.images.augment import Mix, mix
from ssl_jax.data.inspection import inspect
from ssl_jax.data.labels import match_classes
from ssl_jax.data.pipeline import ClassBalanced, Stream
from ssl_jax.data.sources import load_source
from ssl_jax.data.text.supervised import labelled_text
from ssl_jax.downstream import EVALUATORS
from ssl_jax.downstream.class_weights import balanced_weights, positive_weights
from ssl_jax.downstream.evaluation import check_number_of_classes
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.heads import LogisticRegression
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.downstream.supervised.classification import Classification
from ssl_jax.downstream.supervised.text_classification import TextClassification
from ssl_jax.downstream.supervised.text_encoder import class_scores
from ssl_jax.errors import UserError
from ssl_jax.interop.convert import exported
from ssl_jax.predictions import class_rows
from ssl_jax.task import DataInfo
from tests.downstream import text_toys
from tests.keys import toy_key

CLASSES = ("blue", "green", "red")
TARGETS = ((0, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0))
ROOT = __file__.rpartition("/tests/")[0]


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        Image.new("RGB", (5, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def section(uri, **more):
    return dict(train=uri, batch_size=2, image_size=4, normalize=None, holdout=0.0, label_separator=",") | more


# Sources ------------------------------------------------------------------------------------------------------------

TABLES = {  # file -> (text, what separates classes)
    "cells.csv": ("path,label\na.png,red| green\nb.png,\nc.png,blue\nd.png,green\n", "|"),
    "rows.csv": ("path,label\na.png,red\na.png,green\nb.png,\nc.png,blue\nd.png,green\n", ","),
    "lists.jsonl": (
        '{"path": "a.png", "label": ["red", "green"]}\n{"path": "b.png", "label": []}\n'
        '{"path": "c.png", "label": "blue"}\n{"path": "d.png", "label": "green"}\n', ",",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", TABLES)
def test_a_table_of_several_classes_an_example(folder, file):
    """Apart in a cell, in rows of one image, and in a list; an empty cell is none of them."""
    text, separator = TABLES[file]
    (folder / file).write_text(text)
    uri = f"{file.rpartition('.')[2]}:{folder / file}"
    dataset = build("images", section(uri, label_separator=separator))
    assert dataset.info.classes == CLASSES and dataset.info.shapes["label"].shape == (3,)
    np.testing.assert_array_equal(dataset.labels(), TARGETS)
    np.testing.assert_array_equal(Stream(dataset, batch_size=4, seed=0, shuffle=False).host_batch(0)["label"], TARGETS)
    assert "1 to 2 examples per class, 0 to 2 classes per example, 1.0 on average" in inspect(uri, label_separator=separator)


def test_a_table_whose_labels_look_like_several_classes_says_so(folder):
    (folder / "cells.csv").write_text("path,label\na.png,red;green\nb.png,green\nc.png,red\nd.png,Bag/Box\n")
    assert "'red;green' looks like several classes; data.label_separator=';'" in inspect(f"csv:{folder / 'cells.csv'}")
    (folder / "other.csv").write_text("path,label\na.png,red;green\nb.png,green\n")  # one part is no class
    assert "looks like" not in inspect(f"csv:{folder / 'other.csv'}")


def test_parquet_has_lists_of_class_numbers_or_names(folder, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    numbers = pyarrow.table({"image": [f"{name}.png" for name in "abcd"], "label": [[2, 1], [], [0], None]})
    inner = {"names": list(CLASSES), "_type": "ClassLabel"}
    for number, label in enumerate(({"feature": inner, "_type": "List"}, [inner])):  # as `datasets` wrote it, and writes it
        info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
        pq.write_table(numbers.replace_schema_metadata({"huggingface": info}), folder / f"{number}.parquet")
        source = load_source(f"parquet:{folder / f'{number}.parquet'}", label_separator=",")
        assert source.classes == CLASSES
        np.testing.assert_array_equal(source.labels(), [*TARGETS[:3], (0, 0, 0)])
    with pytest.raises(UserError, match="expected one class; for several set data.label_separator"):
        load_source(f"parquet:{folder / '0.parquet'}")


def test_classes_of_another_split_are_matched_by_name(folder):
    (folder / "test.csv").write_text("path,label\na.png,red\nb.png,pink blue\nc.png,green blue\n")
    source = load_source(f"csv:{folder / 'test.csv'}", label_separator=" ")
    with pytest.raises(UserError, match="class pink does not occur in the training data"):
        match_classes(source, ("red", "green", "blue"), "csv:train")
    matched = match_classes(source, ("red", "green", "blue"), "csv:train", "skip")
    np.testing.assert_array_equal(matched.labels(), [(1, 0, 0), (0, 0, 1), (0, 1, 1)])
    np.testing.assert_array_equal(matched[2]["label"], (0, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train="folder:{folder}"), "data.label_separator: folder:.* is not a table"),
        (dict(label_separator=None), "label is .*red.*expected one class; for several set data.label_separator"),
        (dict(label_separator=""), "must be at least one character"),
    ],
)
def test_what_has_no_several_classes_is_one_line(folder, options, message):
    (folder / "lists.jsonl").write_text(TABLES["lists.jsonl"][0])
    options = {name: value and value.format(folder=folder) for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        build("images", section(f"jsonl:{folder / 'lists.jsonl'}") | options)


# Metrics and the linear probe ---------------------------------------------------------------------------------------


def several(count=400, dim=7, seed=0):
    """Features and labels of three classes of unequal size, each its own half of the space."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, dim)) * random.uniform(0.01, 30, dim) + random.uniform(-5, 5, dim)
    z = (x - x.mean(0)) / x.std(0)
    y = z @ random.standard_normal((dim, 3)) + random.standard_normal((count, 3)) > (0.0, 1.0, 3.0)
    return x.astype(np.float32), y.astype(np.int32), z


def test_mean_average_precision_is_scikit_learns(seed=3):
    _, targets, _ = several()
    scores = np.round(np.random.default_rng(seed).standard_normal(targets.shape) + targets, 1)
    found = {record.name: record.value for record in metrics.several_classes(scores, targets, CLASSES)}
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    for c, name in enumerate(CLASSES):
        assert found[f"per_class_average_precision/{name}"] == pytest.approx(
            average_precision_score(targets[:, c], scores[:, c])
        )
    assert found["chance/mean_average_precision"] == pytest.approx(targets.mean())
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(targets, scores > 0))
    with pytest.raises(UserError, match="NaN or infinite"):
        list(metrics.several_classes(np.full((2, 3), np.nan), targets[:2]))


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_a_probe_of_several_classes_is_one_logistic_regression_each(l2):
    x, y, z = several()
    ours = LogisticRegression(x, y, 3)
    head = ours.linear(ours.fit(l2, iterations=300, tolerance=1e-6))
    for c in range(3):
        reference = Reference(C=1 / (l2 * len(x)), max_iter=2000, tol=1e-8).fit(z, y[:, c])
        np.testing.assert_allclose(head.weight[:, c] * x.std(0), reference.coef_[0], atol=2e-3)
        np.testing.assert_allclose(head(x)[:, c], reference.decision_function(z), atol=5e-3)


def test_a_probe_with_class_weights_is_scikit_learns_of_balanced_weights():
    """Of the weights themselves, and of the head that the probe ends with."""
    x, y, z = several()
    labels = np.argmax(y, axis=1)
    np.testing.assert_allclose(
        balanced_weights(np.bincount(labels)), compute_class_weight("balanced", classes=np.arange(3), y=labels)
    )
    heads = {}
    for weights in (None, "balanced"):
        choice = probe([x], labels, 3, LinearProbe(l2=(1e-2,), class_weights=weights))[0]
        reference = Reference(C=1 / (1e-2 * len(x)), max_iter=2000, tol=1e-8, class_weight=weights).fit(z, labels)
        np.testing.assert_allclose(choice.head.weight * x.std(0)[:, None], reference.coef_.T, atol=2e-3)
        heads[weights] = choice.head.weight
    assert np.abs(heads[None] - heads["balanced"]).max() * x.std(0).max() > 0.1
    with pytest.raises(UserError, match='class_weights: protocol="?\'?grid.*use "lbfgs"'):
        LinearProbe(protocol="grid", class_weights="balanced")


def test_a_probe_of_several_classes_with_class_weights_is_scikit_learns_with_weighted_positives():
    x, y, z = several()
    choice = probe([x], y, 3, LinearProbe(l2=(1e-2,), class_weights="balanced"))[0]
    for c in range(3):
        weights = {0: 1.0, 1: (1 - y[:, c].mean()) / y[:, c].mean()}
        reference = Reference(C=1 / (1e-2 * len(x)), max_iter=2000, tol=1e-8, class_weight=weights).fit(z, y[:, c])
        np.testing.assert_allclose(choice.head.weight[:, c] * x.std(0), reference.coef_[0], atol=2e-3)
        np.testing.assert_allclose(choice.head(x)[:, c], reference.decision_function(z), atol=6e-3)


def test_a_class_that_nothing_can_be_learnt_of_is_named():
    _, y, _ = several()
    for labels, message in ((y * (1, 0, 1), "no example of class green"), (y | (0, 0, 1), "no example without class red")):
        with pytest.raises(UserError, match=message):
            metrics.check_labels(labels, y, CLASSES)
    with pytest.raises(UserError, match="no example of the test split has a class"):
        metrics.check_labels(y, 0 * y, CLASSES)


def evaluation(folder, **options):
    (folder / "cells.csv").write_text(TABLES["cells.csv"][0])
    dataset = build("images", section(f"csv:{folder / 'cells.csv'}", label_separator="|"))
    return EvaluationData(dataset, dataset)


def test_evaluators_of_one_class_an_example_refuse_several(folder):
    data, refused = evaluation(folder), set()
    for name in EVALUATORS:
        try:
            evaluator = object.__new__(look_up(EVALUATORS, name, "downstream"))  # some have settings without defaults
            check_number_of_classes(name, evaluator, data)
        except UserError as error:
            assert "so that no class has N shots), but here an example may have several" in str(error)
            assert "those that take several are linear_probe, knn," in str(error)
            refused.add(name)
    assert refused == {"few_shot"}
    for options in (dict(), dict(protocol="grid"), dict(protocol="mae"), dict(class_weights="balanced")):
        LinearProbe(**options).check(data)


def test_predictions_name_every_class_above_a_half():
    logits = np.array([[2.0, -1.0, 0.5], [-1.0, -1.0, -1.0]])
    rows = class_rows(logits, task())
    assert [row["prediction"] for row in rows] == ["blue; red", ""]
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in rows], 1 / (1 + np.exp(-logits)))


# The tasks ----------------------------------------------------------------------------------------------------------


def task(shape=(3,), counts=None, **settings):
    info = DataInfo(
        {"image": jax.ShapeDtypeStruct((8, 8, 1), jnp.float32), "label": jax.ShapeDtypeStruct(shape, jnp.int32)},
        CLASSES, (0.5,), (0.5,), extra={"class_counts": counts},
    )  # fmt: skip
    model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    config = dict(task=dict(name="classification", head_std=0.5, **settings), model=model, training=dict(dtype="float32"))
    return Classification.from_config(ConfigDict(config), info)


def batch(labels):
    images = np.random.default_rng(0).standard_normal((len(labels), 8, 8, 1)).astype(np.float32)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels), "position": jnp.arange(len(labels))}


def test_the_loss_of_several_classes_is_binary_cross_entropy():
    t, b = task(), batch(np.array(TARGETS * 2, np.int32))
    params = jax.jit(t.init)(toy_key(0), b)
    logits = np.asarray(jax.jit(t.forward)(params, b)["logits"], np.float64)
    p, y = 1 / (1 + np.exp(-logits)), np.array(TARGETS * 2)
    loss, found = jax.jit(functools.partial(t.loss, train=True))(params, b, jax.random.key(1))
    assert float(loss) == pytest.approx(np.mean([log_loss(y[:, c], p[:, c], labels=(0, 1)) for c in range(3)]), rel=1e-5)
    assert float(found["subset_accuracy"]) == pytest.approx(((p > 0.5) == y).all(axis=1).mean())


def test_class_weights_of_several_classes_are_torchs_positive_weights(folder):
    """Of images, and of texts with smoothed targets, counted on the examples that are trained on."""
    torch = pytest.importorskip("torch")
    (folder / "cells.csv").write_text(TABLES["cells.csv"][0])
    balanced, settings = dict(class_weights="balanced"), section(f"csv:{folder / 'cells.csv'}", label_separator="|")
    counts = build("images", settings, task_section=balanced).info.extra["class_counts"]
    assert counts == [[3, 1], [2, 2], [3, 1]]  # TARGETS
    y = np.array(TARGETS, np.int32)
    t, b = task(counts=counts, **balanced), batch(y)
    params = jax.jit(t.init)(jax.random.key(0), b)
    logits = np.asarray(jax.jit(t.forward)(params, b)["logits"])
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 1.0, 3.0]))
    loss, weights = jax.jit(functools.partial(t.joint_loss, train=True)), jnp.asarray(positive_weights(counts), jnp.float32)
    rows = jax.jit(functools.partial(t.embed, train=True))(params, b, jax.random.key(1))
    for smoothing in (0.0, 0.2):
        soft = y * (1 - smoothing) + smoothing / 2
        expected = float(reference(torch.tensor(logits), torch.tensor(soft, dtype=torch.float32)))
        given = b | {"label": jnp.asarray(soft, jnp.float32)} if smoothing else b
        assert float(loss(params, rows, given)[0]) == pytest.approx(expected, rel=1e-5)
        scores = class_scores(jnp.asarray(logits), jnp.asarray(y), smoothing, weights)  # of `text_classification`
        assert float(jnp.mean(scores)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(positive_weights([[4, 0], [0, 4]]), [1, 1])  # nothing to weigh


@pytest.mark.parametrize("soft", [False, True])
def test_class_weights_are_scikit_learns(soft):
    """The mean over the training split is its loss with the sample weights "balanced"."""
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 0], np.int32)
    counts = np.bincount(labels).tolist()
    t, b = task((), counts, class_weights="balanced"), batch(labels)
    params = jax.jit(t.init)(toy_key(0), b)
    p = np.asarray(jax.nn.softmax(jax.jit(t.forward)(params, b)["logits"]), np.float64)
    given = b | {"label": jax.nn.one_hot(b["label"], 3)} if soft else b
    expected = log_loss(labels, p / p.sum(1, keepdims=True), sample_weight=compute_sample_weight("balanced", labels))
    loss = float(jax.jit(functools.partial(t.loss, train=True))(params, given, jax.random.key(1))[0])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_class_weights_of_text_count_the_examples_that_are_trained_on(tmp_path):
    uri = text_toys.letters(tmp_path / "letters.tsv", count=40, classes="xxxyz")
    settings, section = text_toys.section(uri), dict(name="text_classification", dropout=0.0, class_weights="balanced")
    data = labelled_text(settings, split="train", train=True, task_section=section)
    assert data.info.extra["class_counts"] == np.bincount(data.labels()).tolist() == [24, 8, 8]
    t = TextClassification.from_config(text_toys.config(section), data.info)
    b = text_toys.batch_of(data, 40)
    params = jax.jit(t.init)(toy_key(0), b)
    p = np.asarray(jax.nn.softmax(jax.jit(t.features)(params, b)["logits"]), np.float64)
    weights = compute_sample_weight("balanced", np.asarray(b["label"]))
    loss = float(jax.jit(functools.partial(t.loss, train=False))(params, b, jax.random.key(1))[0])
    assert loss == pytest.approx(log_loss(b["label"], p / p.sum(1, keepdims=True), sample_weight=weights), rel=1e-5)


def test_several_classes_are_mixed_like_one():
    labels = np.array(TARGETS, np.int32)
    images = {"image": jnp.zeros((4, 8, 8, 1))}
    settings = Mix(mixup=1.0, cutmix=0.0, smoothing=0.2)
    mixed = jax.jit(lambda labels: mix(images | {"label": labels}, jax.random.key(0), settings, 3)["label"])
    found = np.asarray(mixed(labels))
    smooth = labels * 0.8 + 0.1
    share = (found - smooth[::-1])[smooth != smooth[::-1]] / (smooth - smooth[::-1])[smooth != smooth[::-1]]
    np.testing.assert_allclose(share, share[0], rtol=1e-4)
    np.testing.assert_allclose(found, smooth * share[0] + smooth[::-1] * (1 - share[0]), atol=1e-5)
    one = np.asarray(mixed(np.array([0, 1, 2, 1])))
    np.testing.assert_allclose(one[0], 0.8 * np.array([share[0], 1 - share[0], 0]) + 0.2 / 3, rtol=1e-4)


def test_transformers_reads_that_examples_have_several_classes():
    t = task(pooling="cls")
    _, theirs, _ = exported(t, jax.device_get(jax.jit(t.init)(toy_key(0), batch(np.array(TARGETS, np.int32)))))
    assert theirs["problem_type"] == "multi_label_classification"
    t = task((), pooling="cls")
    assert "problem_type" not in exported(t, jax.device_get(jax.jit(t.init)(toy_key(0), batch(np.zeros(4, np.int32)))))[1]


# Sampling -----------------------------------------------------------------------------------------------------------


def test_class_balanced_sampling_draws_classes_and_their_examples_equally_often(tmp_path):
    labels = np.array([0] * 12 + [1] * 6 + [2] * 2)
    np.savez(tmp_path / "a.npz", image=np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4, 1), label=labels)
    settings = dict(train=f"npz:{tmp_path / 'a.npz'}", batch_size=9, holdout=0.0)
    dataset = build("images", settings | dict(sampling="class_balanced"))
    stream = Stream(dataset, batch_size=9, seed=1)
    drawn = [stream.indices(step) for step in range(24)]
    assert all(np.bincount(labels[index]).tolist() == [3, 3, 3] for index in drawn)  # in each batch of whole rounds
    assert np.bincount(np.concatenate(drawn)).tolist() == [6] * 12 + [12] * 6 + [36] * 2
    np.testing.assert_array_equal(drawn[7], Stream(dataset, batch_size=9, seed=1).indices(7))
    assert stream.steps_per_epoch == 20 / 9
    assert not np.array_equal(drawn[0], Stream(dataset, batch_size=9, seed=2).indices(0))
    assert not build("images", settings | dict(sampling="class_balanced"), train=False).class_balanced
    assert len({tuple(order.tolist()) for order in (labels[index] for index in drawn)}) > 10
    for what, message in ((dict(sampling="balanced"), "must be one of uniform, class_balanced"),):
        with pytest.raises(UserError, match=message):
            build("images", settings | what)


def test_class_balanced_sampling_needs_one_class_an_example(folder):
    (folder / "cells.csv").write_text(TABLES["cells.csv"][0])
    dataset = build("images", section(f"csv:{folder / 'cells.csv'}", label_separator="|"))
    with pytest.raises(UserError, match="its examples have several classes"):
        ClassBalanced(dataset, 0)


# The commands -------------------------------------------------------------------------------------------------------

SMALL = (
    "--config.data.image_size=8 --config.data.batch_size=8 --config.model.patch_size=4 --config.model.width=16 "
    "--config.model.depth=1 --config.model.heads=2 --config.model.mlp_width=16 --config.training.dtype=float32"
).split()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 images; a class is a bright band of its own."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = [("path", "label")]
    for i in range(60):
        image, own = random.integers(0, 60, (8, 8, 3)).astype(np.uint8), random.random(3) < (0.5, 0.3, 0.4)
        for c in np.flatnonzero(own):
            image[2 * c : 2 * c + 2, :, c] = 255
        Image.fromarray(image).save(folder / f"{i}.png")
        rows.append((f"{i}.png", "/".join(CLASSES[c] for c in np.flatnonzero(own))))
    with (folder / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def command(name, recipe, photos, workdir, *more):
    data = [f"--config.data.train=csv:{photos / 'all.csv'}", "--config.data.label_separator=/"]
    return cli.main([name, f"--config={ROOT}/configs/{recipe}", *data, *SMALL, f"--workdir={workdir}", *more])


@pytest.mark.slow
def test_train_predict_and_evaluate_a_classifier_of_several_classes(photos, tmp_path, capsys):
    workdir = tmp_path / "classes"
    more = ("--config.training.duration=2 steps", "--config.task.mix.mixup=0.2")
    assert command("finetune", "downstream/images.py", photos, workdir, *more) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert 0 < results["classification/mean_average_precision"] <= 1
    assert results["classification/chance/mean_average_precision"] < 0.7
    assert cli.main(["predict", f"--workdir={workdir}", f"--data=csv:{photos / 'all.csv'}", f"--to={tmp_path / 'p.csv'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 60 and all(0 <= float(row[name]) <= 1 for row in rows for name in CLASSES)
    assert (
        rows[0]["prediction"].split("; ") == [name for name in CLASSES if float(rows[0][name]) > 0.5]
        or not rows[0]["prediction"]
    )
    found = ssl_jax.load(workdir).predict(str(photos / "0.png"))[0]["probabilities"]
    assert found == pytest.approx({name: float(rows[0][name]) for name in CLASSES}, rel=1e-3)
    assert cli.main(["predict", f"--workdir={workdir}", f"--data=folder:{photos}", f"--to={tmp_path / 'p.npz'}"]) == 0


@pytest.mark.slow
def test_frozen_evaluators_of_a_pretext_task_take_several_classes_and_few_shot_refuses(photos, tmp_path, capsys):
    small = ("--config.task.decoder.width=16", "--config.task.decoder.depth=1", "--config.task.decoder.heads=2")
    more = (*small, "--config.training.duration=2 steps")
    few_shot = "--config.downstream.few_shot.shots=(1,)"
    assert command("run", "mae/folder.py", photos, tmp_path / "mae", *more, few_shot) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "downstream.few_shot: takes one class an example" in line and "--config.downstream.few_shot=None" in line
    assert not (tmp_path / "mae").exists()
    assert command("run", "mae/folder.py", photos, tmp_path / "mae", *more) == 0
    results = json.loads((tmp_path / "mae" / "results.json").read_text())
    assert results["linear_probe/raw_pixels/mean_average_precision"] > 0.9  # bright bands are easy
    assert 0 < results["linear_probe/held_out_mean_average_precision"] <= 1
    assert results["knn/raw_pixels/mean_average_precision"] > results["knn/chance/mean_average_precision"]
