"""Linear heads against scikit-learn, and each protocol against its definition."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference

from ssl_jax.downstream.evaluators import heads as linear
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.heads import Descent, LogisticRegression, lars_ratio, train_linear_heads
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError
from ssl_jax.models.vit import ViT, ViTSettings
from ssl_jax.reports.records import flat
from ssl_jax.task import Task
from tests.downstream.downstream_toys import ToyTask, blobs, toy_params
from tests.keys import toy_key


def problem(count=600, dim=9, classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count).astype(np.int32)
    x = random.standard_normal((classes, dim))[labels] + 1.5 * random.standard_normal((count, dim))
    return (x * random.uniform(0.01, 30, dim) + random.uniform(-5, 5, dim)).astype(np.float32), labels


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_logistic_regression_reaches_scikit_learns_optimum(l2):
    """The coefficients themselves agree, although the features' scales differ by a factor of thousands."""
    x, y = problem()
    ours = LogisticRegression(x, y, 4)
    head = ours.linear(ours.fit(l2, iterations=300, tolerance=1e-6))
    z = (x - x.mean(0)) / x.std(0)
    reference = Reference(C=1 / (l2 * len(x)), max_iter=2000, tol=1e-8).fit(z.astype(np.float64), y)
    np.testing.assert_allclose(head.weight * x.std(0)[:, None], reference.coef_.T, atol=2e-3)
    probabilities = metrics.softmax(head(x).astype(np.float64))
    np.testing.assert_allclose(probabilities, reference.predict_proba(z), atol=2e-3)


@pytest.mark.parametrize(("count", "limits"), [(60, None), (60, (20, 10)), (300, (50, 20))])
def test_wide_features_reach_scikit_learns_optimum(count, limits, monkeypatch):
    """By the Gram matrix of fewer examples than features, and by a sample's eigenvectors where both numbers are large."""
    if limits is not None:
        monkeypatch.setattr(linear, "WIDE", limits[0]), monkeypatch.setattr(linear, "RANK", limits[1])
    x, y = problem(count, dim=150)
    x[:, 7] = 3.0
    ours = LogisticRegression(x, y, 4)
    assert (ours.rotation is None) == (limits is not None)
    assert ours.z.shape == ((60, 59) if limits is None else x.shape)
    head = ours.linear(ours.fit(1e-2, iterations=300, tolerance=1e-6))
    z = (x - x.mean(0)) / np.where(x.std(0) > 1e-6, x.std(0), 1)
    reference = Reference(C=1 / (1e-2 * len(x)), max_iter=5000, tol=1e-9).fit(z.astype(np.float64), y)
    probabilities = metrics.softmax(head(x).astype(np.float64))
    np.testing.assert_allclose(probabilities, reference.predict_proba(z), atol=2e-3)
    found = metrics.softmax(ours.logits(ours.fit(1e-2, iterations=300, tolerance=1e-6)).astype(np.float64))
    np.testing.assert_allclose(found, probabilities, atol=1e-4)


def test_examples_of_weight_zero_do_not_count():
    x, y = problem()
    weights = (np.arange(len(x)) % 3 > 0).astype(np.float32)
    ours = LogisticRegression(x, y, 4)
    head = ours.linear(ours.fit(1e-2, weights, iterations=300, tolerance=1e-6))
    z = (x - x.mean(0)) / x.std(0)
    kept = weights > 0
    reference = Reference(C=1 / (1e-2 * kept.sum()), max_iter=2000, tol=1e-8).fit(z[kept], y[kept])
    np.testing.assert_allclose(head.weight * x.std(0)[:, None], reference.coef_.T, atol=2e-3)


@pytest.mark.parametrize(("count", "tests"), [(200, 1000), pytest.param(60000, 10000, marks=pytest.mark.nightly)])
def test_raw_pixels_agree_with_scikit_learn_on_fashion_mnist(count, tests):
    """Accuracy within 0.3 points at the same strength."""
    from ssl_jax.data.sources.bundled import fashion_mnist

    (x, y), (xt, yt) = (
        (s.arrays["image"].reshape(len(s), -1).astype(np.float32) / 255, np.asarray(s.labels(), np.int32))
        for s in (fashion_mnist("train"), fashion_mnist("test"))
    )
    x, y, xt, yt = x[:count], y[:count], xt[:tests], yt[:tests]
    l2 = 1e-2 if count == 60000 else 1e-1
    ours = LogisticRegression(x, y, 10)
    accuracy = metrics.accuracy(ours.linear(ours.fit(l2))(xt), yt)
    std = np.where(x.std(0) > 0, x.std(0), 1)
    reference = Reference(C=1 / (l2 * count), max_iter=200).fit((x - x.mean(0)) / std, y)
    assert accuracy == pytest.approx(reference.score((xt - x.mean(0)) / std, yt), abs=0.003)


def test_constant_features_do_no_harm():
    x, y = problem()
    x = np.concatenate([x, np.full((len(x), 1), 3.7, np.float32), np.zeros((len(x), 1), np.float32)], axis=1)
    ours = LogisticRegression(x, y, 4)
    head = ours.linear(ours.fit(1e-3))
    assert np.isfinite(head.weight).all() and metrics.accuracy(head(x), y) > 0.6


# Descent ------------------------------------------------------------------------------------------------------------


def descend_by_hand(x, y, classes, settings, seed, head):
    """Momentum SGD or LARS on one head, in NumPy, f64, from the formulas."""
    lr, decay = settings.heads[head]
    batch = min(settings.batch_size, len(x))
    per_epoch = len(x) // batch
    steps = max(round(settings.epochs * per_epoch), 1)
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(len(x))[: per_epoch * batch] for _ in range(-(-steps // per_epoch))])
    w, b = settings.init_std * random.standard_normal((x.shape[1], classes)), np.zeros(classes)
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    mean, std, running = x.mean(0), x.std(0), [np.zeros(x.shape[1]), np.ones(x.shape[1])]
    for step in range(steps):
        index = order[step * batch : (step + 1) * batch]
        xb, yb = x[index].astype(np.float64), np.eye(classes)[y[index]] if y.ndim == 1 else y[index]
        if settings.norm == "batch":
            running = [0.9 * running[0] + 0.1 * xb.mean(0), 0.9 * running[1] + 0.1 * xb.var(0, ddof=1)]
            xb = (xb - xb.mean(0)) / np.sqrt(xb.var(0) + 1e-6)
        else:
            xb = (xb - mean) / std
        logits = xb @ w + b
        error = ((metrics.softmax(logits) if y.ndim == 1 else 1 / (1 + np.exp(-logits))) - yb) / batch
        gw, gb = xb.T @ error + decay * w, error.sum(0)
        if settings.optimizer == "lars":
            gw = gw * 0.001 * np.linalg.norm(w) / np.linalg.norm(gw)
        epoch, warmup = step / per_epoch, settings.warmup_epochs
        if epoch < warmup:
            factor = epoch / warmup
        else:
            factor = 0.5 * (1 + np.cos(np.pi * (epoch - warmup) / (steps / per_epoch - warmup)))
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        rate = lr * batch / 256 * factor
        w, b = w - rate * vw, b - rate * vb
    if settings.norm == "batch":
        mean, std = running[0], np.sqrt(running[1] + 1e-6)
    w = w / std[:, None]
    return w, b - mean @ w


@pytest.mark.parametrize(
    "settings",
    [
        Descent(learning_rates=(0.02, 0.5), weight_decays=(0.0, 0.1), epochs=3, batch_size=50),
        Descent("lars", (0.1,), (0.0,), 12, 3, 100, "batch"),
        Descent("lars", (0.1,), (0.01,), 4, 0, 4096, "standard"),
    ],
    ids=["sgd", "mae", "lars with decay"],
)
@pytest.mark.parametrize("several", [False, True], ids=["one class", "several classes"])
def test_descent_is_the_published_formula(settings, several):
    x, y = problem(300)
    y = np.stack([y == 0, y < 2, y > 1, y % 2], axis=1).astype(np.int32) if several else y
    heads = train_linear_heads(x, y, 4, settings, seed=3)
    assert len(heads) == len(settings.heads)
    for i, head in enumerate(heads):
        weight, bias = descend_by_hand(x, y, 4, settings, 3, i)
        np.testing.assert_allclose(head.weight, weight, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(head.bias, bias, rtol=2e-3, atol=2e-3)


def test_lars_ratio_is_one_where_a_norm_vanishes():
    w, g = jnp.ones((2, 2, 3)), jnp.full((2, 2, 3), 3.0) * jnp.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(lars_ratio(w, g), [0.001 * 2 / 6, 0.001 * 2 / 12, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(lars_ratio(0 * w, g), [1.0, 1.0, 1.0])


def test_a_grid_trained_at_once_equals_its_heads_trained_one_at_a_time():
    """Learning rates x weight decays x representations. So the chosen head is no worse than the best of the single runs."""
    (x, y), options = problem(400), dict(epochs=4, batch_size=32)
    rates, decays, xs = (1e-3, 1e-2, 0.1, 1.0), (0.0, 1e-3), [x, np.tanh(x[:, :5]), np.square(x)]
    grid = Descent(learning_rates=rates, weight_decays=decays, **options)
    for x, heads in zip(xs, train_linear_heads(xs, y, 4, grid, seed=3), strict=True):
        for (lr, wd), head in zip(grid.heads, heads, strict=True):
            (alone,) = train_linear_heads(x, y, 4, Descent(learning_rates=(lr,), weight_decays=(wd,), **options), seed=3)
            np.testing.assert_allclose(head.weight, alone.weight, rtol=1e-4, atol=1e-6 * np.abs(alone.weight).max())
            np.testing.assert_allclose(head.bias, alone.bias, rtol=1e-4, atol=1e-5)
    settings = dict(protocol="grid", **options)
    found = probe(xs, y, 4, LinearProbe(learning_rates=rates, weight_decays=decays, **settings))
    for x, choice in zip(xs, found, strict=True):
        alone = {
            (lr, wd): probe([x], y, 4, LinearProbe(learning_rates=(lr,), weight_decays=(wd,), **settings))[0].score
            for lr in rates
            for wd in decays
        }
        assert choice.score == max(alone.values()) == alone[choice.settings["lr"], choice.settings["weight_decay"]]


GRID = dict(weight_decays=(0.0, 1e-4, 1e-3))  # x 13 learning rates


def seconds(run, repeats=5):
    """The least processor time of several runs, after one that compiles; other processes do not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.slow
def test_39_heads_cost_at_most_three_times_one():
    """From images to accuracy: one pass of the encoder and one stream of batches serve all heads.

    A failure means that heads no longer share them.
    """
    data, task, passes = blobs(train=2000, test=400, size=16), ViTTask(), []
    encoder = with_baselines(task, jax.jit(task.init)(toy_key(0), {"image": jnp.zeros((1, 16, 16, 1))}))
    compute = encoder._compute
    encoder._compute = lambda dataset, names, size: passes.append(names) or compute(dataset, names, size)

    def cost(**options):
        def run():
            encoder.forget()
            flat(settings(encoder, data))

        settings = LinearProbe(protocol="grid", baselines=False, **options)
        passes.clear()
        return seconds(run, 2), len(passes)

    (many, passes_many), (one, passes_one) = cost(**GRID), cost(learning_rates=(0.1,))
    assert passes_many == passes_one == 3 * 2  # once over each split a run
    assert many < 3 * one, (many, one)


@pytest.mark.slow
def test_39_heads_on_ready_features_cost_half_of_39_single_runs_at_most():
    """Without the encoder, 39 times the multiplications remain; what is shared is the reading of the batches."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((20000, 192)).astype(np.float32), random.integers(0, 10, 20000).astype(np.int32)
    cost = lambda **options: seconds(lambda: train_linear_heads(x, y, 10, Descent(epochs=4, **options), seed=0))
    many, one = cost(**GRID), cost(learning_rates=(0.1,))
    assert many < 39 / 2 * one, (many, one)


class ViTTask(Task):
    name, data = "vit", "images"
    vit = ViT(ViTSettings(patch_size=4), (16, 16), 1)

    def init(self, key, batch):
        return self.vit.init(key, batch["image"])["params"]

    def features(self, params, batch):
        return self.vit.representations(*self.vit.apply({"params": params}, batch["image"]))


# The evaluator ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["lbfgs", "grid", "mae"])
def test_each_protocol_learns_and_prints_its_baselines_beside(protocol):
    data = blobs()
    options = {"lbfgs": {}, "grid": dict(batch_size=32), "mae": dict(batch_size=32, learning_rates=(5.0,))}[protocol]
    found = flat(LinearProbe(protocol=protocol, **options)(with_baselines(ToyTask(), toy_params(data)), data))
    assert found["accuracy"] > 0.9 and 0 <= found["ece"] <= 1
    assert {"random_encoder/accuracy", "raw_pixels/accuracy", "majority/accuracy", "per_class/class 0"} <= found.keys()


def test_only_the_baselines_asked_for_are_measured():
    data = blobs()
    encoder = with_baselines(ToyTask(), toy_params(data))
    found = flat(LinearProbe(baselines=("random_encoder",))(encoder, data))
    assert "random_encoder/accuracy" in found and "raw_pixels/accuracy" not in found
    with pytest.raises(UserError, match="baselines: 'pixels' is none of random_encoder, raw_pixels"):
        flat(LinearProbe(baselines=("pixels",))(encoder, data))


def test_the_test_split_chooses_nothing():
    """With other test labels the same head is chosen."""
    data = blobs(noise=150.0)
    encoder = with_baselines(ToyTask(), toy_params(data))
    settings = LinearProbe(protocol="grid", batch_size=32, baselines=False)
    first = flat(settings(encoder, data))
    data.test.label_array = np.roll(data.test.label_array, 1)
    second = flat(settings(with_baselines(ToyTask(), toy_params(data)), data))
    assert first["accuracy"] != second["accuracy"]
    for name in ("chosen/lr", "chosen/weight_decay", "held_out_accuracy"):
        assert first[name] == second[name]


def test_the_best_of_several_representations_is_chosen():
    data = blobs(noise=120.0)
    encoder = with_baselines(ToyTask(), toy_params(data))
    found = flat(LinearProbe(representation=("cls", "mean", "tokens"), baselines=False)(encoder, data))
    scores = [
        flat(LinearProbe(representation=r, baselines=False)(encoder, data))["held_out_accuracy"]
        for r in ("cls", "mean", "tokens")
    ]
    assert found["held_out_accuracy"] == max(scores) and found["chosen/representation"] == np.argmax(scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(protocol="svm"), "protocol='svm': must be one of"),
        (dict(held_out=1.0), "held_out=1.0: must lie in"),
        (dict(l2=(0,)), "l2="),
        (dict(protocol="grid", learning_rates=(-1.0,)), "learning_rates="),
        (dict(representation=()), "representation is empty"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        LinearProbe(**options)
