"""Contrastive losses against the papers' formulas, GradCache and data parallelism against the plain gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import CharacterTokenizer
from ssl_jax.errors import UserError
from ssl_jax.pretext.contrastive import fingerprints, infonce, sigmoid
from ssl_jax.pretext.image_text import ImageText
from ssl_jax.task import Context, DataInfo
from ssl_jax.training.grad_cache import in_chunks
from tests.keys import toy_key


def unit_vectors(seed, batch=12, dim=6):
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((2, batch, dim))
    return tuple(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))


def clip_formula(x, y, scale):
    """Radford et al. 2021, figure 3, in float64."""
    logits = scale * x @ y.T
    cross_entropy = lambda s: -np.mean(np.diag(s) - np.log(np.exp(s - s.max(1, keepdims=True)).sum(1)) - s.max(1))
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def siglip_formula(x, y, scale, bias):
    """Zhai et al. 2023, equation 1, in float64."""
    z = 2 * np.eye(len(x)) - 1
    return np.sum(np.log1p(np.exp(-z * (scale * x @ y.T + bias)))) / len(x)


@given(st.integers(0, 2**31 - 1), st.floats(0.5, 30), st.floats(-12, 2))
@settings(deadline=None, max_examples=20)
def test_losses_are_the_papers_formulas(seed, scale, bias):
    x, y = unit_vectors(seed)
    a, b = jnp.float32(x), jnp.float32(y)
    np.testing.assert_allclose(jax.jit(infonce)(a, b, scale), clip_formula(x, y, scale), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(sigmoid)(a, b, scale, bias), siglip_formula(x, y, scale, bias), rtol=1e-5, atol=1e-6)


LOSSES = {
    "infonce": lambda a, b, chunks: infonce(a, b, 14.3, chunks=chunks),
    "sigmoid": lambda a, b, chunks: sigmoid(a, b, 10.0, -10.0, chunks=chunks),
}


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_depend_on_neither_the_order_of_pairs_nor_on_pieces(name, chunks):
    order = np.random.default_rng(0).permutation(12)
    gradient = jax.jit(jax.value_and_grad(LOSSES[name], (0, 1)), static_argnums=2)
    for seed in range(5):
        x, y = map(jnp.float32, unit_vectors(seed))
        plain, plain_grads = gradient(x, y, 1)
        moved, grads = gradient(x[order], y[order], chunks)
        np.testing.assert_allclose(moved, plain, rtol=1e-5)
        for moved_grad, grad in zip(grads, plain_grads, strict=True):
            np.testing.assert_allclose(moved_grad, grad[order], rtol=1e-4, atol=1e-6)


def test_equal_texts_are_negatives_or_left_out():
    """With `same`, a batch in which one text stands twice costs what the two batches without one of the copies say."""
    x, y = unit_vectors(3)
    y[5] = y[2]
    same = fingerprints(jnp.array([[7, i if i != 5 else 2] for i in range(12)]))
    keep = ~np.eye(12, dtype=bool)
    logits = 14.3 * x @ y.T
    for i, j in ((2, 5), (5, 2)):
        logits[i, j] = -np.inf
        keep[i, j] = False
    log_softmax = lambda s: np.diag(s) - np.log(np.exp(s).sum(1))
    wanted = -(log_softmax(logits).mean() + log_softmax(logits.T).mean()) / 2
    a, b = jnp.float32(x), jnp.float32(y)
    for chunks in (1, 4):
        np.testing.assert_allclose(infonce(a, b, 14.3, same=same, chunks=chunks), wanted, rtol=1e-5)
    terms = np.log1p(np.exp(-(2 * np.eye(12) - 1) * (10 * x @ y.T - 10)))
    np.testing.assert_allclose(
        sigmoid(a, b, 10.0, -10.0, same=same), (terms * (keep | np.eye(12, dtype=bool))).sum() / 12, rtol=1e-5
    )
    assert infonce(a, b, 14.3) > wanted


@given(st.lists(st.lists(st.integers(0, 49407), min_size=5, max_size=5), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_fingerprints_are_equal_for_equal_rows_only(rows):
    marks = np.asarray(jax.jit(fingerprints)(np.array(rows, np.int32)))
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert (a == b) == bool(np.all(marks[i] == marks[j]))


def test_chunks_put_rows_back_in_their_places():
    x = jnp.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(in_chunks(lambda a: 2 * a, (x,), 4), 2 * x)


# The task -----------------------------------------------------------------------------------------------------------


def small_config(**task) -> ConfigDict:
    config = ConfigDict()
    config.task = dict(name="image_text", **task)
    config.model = dict(
        name="dual_encoder", dim=8,
        image=dict(patch_size=4, width=16, depth=1, heads=2, positions="learned"),
        text=dict(width=12, depth=1, heads=2, init="normal", init_std=0.2),
    )  # fmt: skip
    config.data = dict(batch_size=8)
    config.training = dict(accumulation=1)
    return config


def info(tokens=7) -> DataInfo:
    shapes = {"image": jax.ShapeDtypeStruct((8, 8, 3), jnp.float32), "tokens": jax.ShapeDtypeStruct((tokens,), jnp.int32)}
    return DataInfo(shapes, mean=(0.5,) * 3, std=(0.5,) * 3, tokenizer=CharacterTokenizer("abcdefgh ", ("[PAD]", "[EOS]")))


def a_batch(seed=0, batch=8):
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list("abcdefgh"), 4)) for _ in range(batch)]
    task = ImageText.from_config(small_config(), info())
    images = random.standard_normal((batch, 8, 8, 3)).astype(np.float32)
    tokens = jnp.array(task.tokenize(texts)["tokens"])
    return {"image": jnp.array(images), "position": jnp.arange(batch), "tokens": tokens}


@functools.cache
def first_params(loss="infonce"):
    task = ImageText.from_config(small_config(loss=loss), info())
    return jax.jit(task.init)(toy_key(1), a_batch())


def task_and_params(config=None):
    config = config or small_config()
    return ImageText.from_config(config, info()), first_params(config.task.get("loss", "infonce"))


def gradients(task, params, batch, train=True):
    key = jax.random.key(5)
    return jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, key, train=train)[0]))(params)


def loss_of(task, params, batch, train=True):
    return float(jax.jit(task.loss, static_argnames="train")(params, batch, jax.random.key(5), train=train)[0])


def close(a, b):
    """Equal to 1e-5 relative, or within 1e-6 of the largest gradient: a key's bias, say, has none but rounding."""
    largest = max(float(jnp.abs(y).max()) for y in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * largest)


def test_the_loss_sees_all_negatives():
    """Guards the test of invariance: the loss of two half batches is not the loss of the whole."""
    task, params = task_and_params()
    batch = a_batch()
    halves = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 4), slice(4, 8))]
    assert abs(loss_of(task, params, batch) - sum(loss_of(task, params, half) for half in halves) / 2) > 0.1


def test_initial_and_clamped_scale():
    """Scale 1 / 0.07, and 10 with bias -10; after a step the logarithm lies in [0, ln 100] (CLIP, section 2.5)."""
    task, params = task_and_params()
    assert math.isclose(params["logit_scale"], math.log(1 / 0.07), rel_tol=1e-6) and "logit_bias" not in params
    for value, wanted in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        after, _ = task.after_update({**params, "logit_scale": jnp.float32(value)}, {}, {}, Context())
        assert math.isclose(after["logit_scale"], wanted, rel_tol=1e-6)
    task, params = task_and_params(small_config(loss="sigmoid", max_scale=None))
    assert math.isclose(params["logit_scale"], math.log(10), rel_tol=1e-6) and params["logit_bias"] == -10
    assert task.after_update({**params, "logit_scale": jnp.float32(9.0)}, {}, {}, Context())[0]["logit_scale"] == 9


def test_dropped_patches_are_dropped_in_training_only():
    task, params = task_and_params(small_config(mask=dict(ratio=0.5)))
    plain = ImageText.from_config(small_config(), info())
    batch = a_batch()
    seen = [loss_of(t, params, batch, train=False) for t in (task, plain)]
    np.testing.assert_allclose(*seen, rtol=1e-6)
    assert abs(loss_of(task, params, batch) - seen[0]) > 1e-4
    assert task.flops() < plain.flops()


def test_training_brings_pairs_together():
    """After a few steps a matched batch scores far below ln 8, that of a guess, and shuffled captions above it."""
    task, params = task_and_params()
    batch, optimizer = a_batch(), optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        grads = jax.grad(lambda p: task.loss(p, batch, key, train=True)[0])(params)
        updates, state = optimizer.update(grads, state)
        return task.after_update(optax.apply_updates(params, updates), {}, {}, Context())[0], state

    for i in range(60):
        params, state = step(params, state, jax.random.key(i))
    moved = {**batch, "tokens": jnp.roll(batch["tokens"], 1, axis=0)}
    assert loss_of(task, params, batch, train=False) < math.log(8) / 2
    assert loss_of(task, params, moved, train=False) > math.log(8)


def test_features_forward_and_panels():
    task, params = task_and_params()
    batch = a_batch()
    features = jax.jit(task.features)
    found, out = features(params, batch), jax.jit(task.forward)(params, batch)
    for name in ("image_embedding", "text_embedding"):
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(found[name], out[name], atol=1e-6)
    assert "mean" in found and "text_embedding" not in features(params, {"image": batch["image"]})
    np.testing.assert_allclose(out["loss"], clip_formula(out["image_embedding"], out["text_embedding"], 1 / 0.07), rtol=1e-5)
    panel = task.panels(params, batch, jax.random.key(0))["matches_in_batch"]
    assert panel.array.shape[:2] == (8, 7) and panel.array.min() >= 0 and panel.array.max() <= 1


def test_what_stands_behind_the_end_of_a_text_changes_nothing():
    """CLIP's causal tower is read at the end-of-text token, so padding is never seen."""
    task, params = task_and_params()
    tokens = np.asarray(a_batch()["tokens"]).copy()
    embed = jax.jit(lambda tokens: task.features(params, {"tokens": tokens})["text_embedding"])
    wanted = np.asarray(embed(tokens))
    tokens[:, 5:] = 3
    np.testing.assert_array_equal(embed(tokens), wanted)
    tokens[:, 3] = 1
    assert np.abs(embed(tokens) - wanted).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.task.update(loss="triplet"), "task.loss='triplet': must be one of infonce, sigmoid"),
        (lambda c: c.task.update(same_text="drop"), "task.same_text='drop'"),
        (lambda c: c.task.update(temperature=1.0), "unknown key task.temperature"),
        (lambda c: c.model.image.update(patch_size=3), "model.image.patch_size=3 does not divide the image"),
        (lambda c: c.model.update(image_projection=False), "model.dim=8: must equal image.width=16"),
        (lambda c: c.model.text.update(context_length=3), "model.text.context_length=3: must be at least"),
        (lambda c: c.model.text.update(pooling="max"), "model.text.pooling='max'"),
        (lambda c: c.data.update(batch_size=1), "data.batch_size=1: a contrastive loss needs other examples"),
        (lambda c: c.task.update(logit_chunks=3), "task.logit_chunks=3: must divide"),
        (lambda c: c.task.update(mask=dict(ratio=0.9)), "task.mask.ratio=0.9 leaves 0 of 4"),
    ],
)
def test_mistakes_are_told_in_one_line(change, message):
    config = small_config()
    change(config)
    with pytest.raises(UserError) as caught:
        ImageText.from_config(config, info())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
