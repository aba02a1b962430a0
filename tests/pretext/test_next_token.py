"""The next-token task: causal, packed, weighted; learns; agrees with itself however it is asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import CharacterTokenizer
from ssl_jax.errors import UserError
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.task import DataInfo, Task
from tests.keys import toy_key

TIME = 16


@functools.cache
def make(task=(), **model):
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((TIME + 1,), jnp.int32)}, tokenizer=CharacterTokenizer("abcdefghij"))
    config = dict(
        task=dict(name="next_token", **dict(task)), model=dict(width=16, depth=2, heads=2, init_std=0.3) | model, training={}
    )
    task = NextToken.from_config(ConfigDict(config), info)
    return task, jax.jit(task.init)(toy_key(0), {"tokens": jnp.zeros((1, TIME + 1), jnp.int32)})


def make_batch(size=4, seed=1, **extra):
    tokens = jax.random.randint(jax.random.key(seed), (size, TIME + 1), 0, 10)
    return {"tokens": tokens, "position": jnp.arange(size), **extra}


def loss_of(task):
    return jax.jit(task.loss, static_argnames="train")


def test_it_is_a_task():
    assert isinstance(make()[0], Task)


@pytest.mark.parametrize("packed", [False, True])
def test_no_logit_depends_on_a_later_token(packed):
    """Changing token j changes no logit before j, in one document or several."""
    task, params = make()
    extra = {"segments": jnp.array([[1] * 6 + [2] * 11] * 4)} if packed else {}
    batch = make_batch(**extra)
    cut = {name: value[:, :TIME] if name != "position" else value for name, value in batch.items()}
    changed = {**cut, "tokens": cut["tokens"].at[:, 9].set((cut["tokens"][:, 9] + 1) % 10)}
    before, after = jax.jit(task.forward)(params, cut)["logits"], jax.jit(task.forward)(params, changed)["logits"]
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (jnp.abs(before - after)[:, 9].max(-1) > 1e-3).all()
    if packed:
        np.testing.assert_array_equal(
            before[:, :6], jax.jit(task.forward)(params, {**cut, "segments": cut["segments"] * 3})["logits"][:, :6]
        )


def test_loss_is_the_mean_negative_log_likelihood_of_the_labels():
    """From the task's own logits, written out."""
    task, params = make()
    batch = make_batch()
    loss, metrics = loss_of(task)(params, batch, jax.random.key(0), train=False)
    logits = jax.jit(task.forward)(params, {"tokens": batch["tokens"][:, :-1]})["logits"]
    log_p = jax.nn.log_softmax(logits)
    nll = -np.take_along_axis(np.asarray(log_p), np.asarray(batch["tokens"])[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
    assert metrics["weight"] == 4 * TIME
    weights = np.zeros((4, TIME), np.float32)
    weights[0, 3], weights[2, 5] = 1, 3
    loss, metrics = loss_of(task)(params, {**batch, "label_weights": jnp.array(weights)}, jax.random.key(0), train=False)
    np.testing.assert_allclose(loss, (nll[0, 3] + 3 * nll[2, 5]) / 4, rtol=1e-5)


def test_packed_documents_are_scored_as_if_alone():
    """The loss of two documents in one window, positions restarted, is that of each by itself."""
    task, params = make()
    batch = make_batch(1)
    tokens = batch["tokens"]
    packed = {
        **batch,
        "segments": jnp.array([[1] * 7 + [2] * 10]),
        "positions": jnp.array([[*range(7), *range(10)]]),
    }
    loss, metrics = loss_of(task)(params, packed, jax.random.key(0), train=False)
    total = 0.0
    for part in (tokens[:, :7], tokens[:, 7:]):
        one, m = loss_of(task)(params, {"tokens": part, "position": batch["position"]}, jax.random.key(0), train=False)
        total += float(one * m["weight"])
    assert metrics["weight"] == 6 + 9
    np.testing.assert_allclose(loss, total / 15, rtol=1e-5)


def test_z_loss_is_added():
    plain, params = make()
    with_z, _ = make(task=(("z_loss", 0.1),))
    batch, key = make_batch(), jax.random.key(0)
    logits = jax.jit(plain.forward)(params, {"tokens": batch["tokens"][:, :-1]})["logits"]
    extra = 0.1 * jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
    loss, metrics = loss_of(with_z)(params, batch, key, train=False)
    np.testing.assert_allclose(loss - metrics["cross_entropy"], extra, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], loss_of(plain)(params, batch, key, train=False)[0], rtol=1e-6)


def test_dropout_depends_on_the_place_in_the_global_batch_only():
    """Half a batch, with its positions, has the losses it has as part of the whole; evaluation has no dropout."""
    task, params = make(dropout=0.3, attention_dropout=0.3)
    batch, key = make_batch(), jax.random.key(5)
    loss = jax.jit(lambda batch, train: task.loss(params, batch, key, train=train)[0], static_argnums=1)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(loss(batch, True), np.mean([loss(half, True) for half in halves]), rtol=1e-5)
    assert abs(loss(batch, True) - loss(batch, False)) > 1e-3
    moved = {**batch, "position": batch["position"] + 4}
    assert abs(loss(batch, True) - loss(moved, True)) > 1e-4
    assert loss(batch, False) == loss(moved, False)


def test_features_have_their_names_and_ignore_the_padding():
    task, params = make()
    batch = {"tokens": make_batch()["tokens"][:, :TIME], "attention_mask": jnp.array([[1] * 5 + [0] * 11] * 4)}
    features = jax.jit(task.features)
    names = features(params, batch)
    assert {"last", "mean", "cls", "tokens", "block00/mean", "block01/last"} <= set(names)
    other = {**batch, "tokens": batch["tokens"].at[:, 5:].set(0)}
    for name in ("last", "mean", "cls"):
        np.testing.assert_allclose(names[name], features(params, other)[name], atol=1e-6)
    np.testing.assert_allclose(names["last"], names["tokens"][:, 4], atol=1e-6)


def test_flops_match_what_xla_counts():
    """The forward formula against XLA's count of the matmuls alone, causal halving put back."""
    task, params = make()
    count = jax.jit(lambda p, b: task.forward(p, b)["logits"]).lower(params, {"tokens": jnp.zeros((1, TIME), jnp.int32)})
    xla = count.compile().cost_analysis()["flops"]
    c = task.model.config
    ours = task.flops() / 3 + c.depth * 2 * TIME * TIME * c.width  # the half of the attention that causality saves
    assert ours < xla < 1.35 * ours  # norms, softmax and GELU come on top at this width


def test_a_repeated_text_is_learnt():
    """A hundred steps of Adam on one periodic text bring the loss near zero."""
    import optax

    task, params = make()
    tokens = jnp.tile(jnp.arange(10), 3)[None, : TIME + 1]
    batch = {"tokens": jnp.concatenate([jnp.roll(tokens, i, axis=1) for i in range(4)]), "position": jnp.arange(4)}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(0), train=True)[0])(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), None, 100)
    assert losses[0] > 2.0
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dict(model=dict(name="vit")), "model.name='vit': does not read tokens; use transformer"),
        (dict(model=dict(context_length=8)), "model.context_length=8: must be at least 16, the length of the data's sequences"),
        (dict(model=dict(heads=3)), "model.heads=3 does not divide width=128"),
        (dict(model=dict(wdith=3)), "unknown key model.wdith; did you mean model.width"),
        (dict(task=dict(name="next_token", z_loss=-1.0)), "task.z_loss=-1.0: must not be negative"),
        (dict(training=dict(dtype="float8")), "training.dtype='float8'"),
    ],
)
def test_mistakes_are_named(config, says):
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((TIME + 1,), jnp.int32)}, tokenizer=CharacterTokenizer("ab"))
    base = dict(task=dict(name="next_token"), model={}, training={})
    with pytest.raises(UserError, match=says):
        NextToken.from_config(ConfigDict(base | config), info)


def test_the_panel_shows_a_continuation():
    task, params = make()
    panel = task.panels(params, make_batch(), jax.random.key(0))["sample"]
    assert panel.lines[0].startswith("prompt: ") and panel.lines[1].startswith("continuation: ")
    assert len(panel.lines[1]) == len("continuation: ") + 200
