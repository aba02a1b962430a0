"""Translation: teacher forcing and cached search agree, nothing of the future or of padding is read, and it learns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ssl_jax.data.text.supervised import parallel_text
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.translation import TranslationMetrics, score
from ssl_jax.downstream.supervised.decoding import Search
from ssl_jax.downstream.supervised.translation import Translation, detokenized
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream import text_toys as toys
from tests.keys import toy_key

SHAPE = dict(width=16, depth=1, heads=2, init="normal", init_std=0.2)
MODELS = {
    "encoder_decoder": dict(name="encoder_decoder", encoder=SHAPE, decoder=SHAPE | dict(depth=2)),
    "prefix": dict(name="transformer", **SHAPE),
    "rope_prefix": dict(name="transformer", positions="rope", kv_heads=1, tied=False, **SHAPE),
}
BOS, EOS = 260, 261


@pytest.fixture
def data(tmp_path):
    """Words of a, b, c; their translation is the same word in x, y, z, backwards."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abc"), random.integers(1, 5))) for _ in range(64)]
    (tmp_path / "s").write_text("\n".join(words) + "\n")
    (tmp_path / "t").write_text("\n".join(w[::-1].translate(str.maketrans("abc", "xyz")) for w in words) + "\n")
    uri = f"parallel:{tmp_path / 's'},{tmp_path / 't'}"
    section = dict(train=uri, test=uri, tokenizer=toys.BYTES, max_source_length=6, max_target_length=6)
    return parallel_text(section, split="train", train=True)


def build(data, model, **task):
    return Translation.from_config(ConfigDict(dict(task=dict(name="translation") | task, model=MODELS[model])), data.info)


def started(task, batch, seed=0):
    return jax.jit(task.init)(toy_key(seed), batch)


@pytest.mark.parametrize("model", MODELS)
def test_the_target_is_read_causally_and_padding_not_at_all(data, model):
    task, batch = build(data, model), toys.batch_of(data)
    params = started(task, batch)
    forward = jax.jit(lambda batch: task.forward(params, batch)["logits"])
    logits = forward(batch)
    for place in (1, 3):
        changed = forward(batch | {"target": batch["target"].at[:, place].set(ord("q"))})
        np.testing.assert_allclose(changed[:, :place], logits[:, :place], rtol=1e-5, atol=1e-5)
        assert np.abs(changed[:, place] - logits[:, place]).max() > 1e-3
    garbage = {side: jnp.where(batch[f"{side}_segments"] > 0, batch[side], ord("q")) for side in ("source", "target")}
    real = np.asarray(batch["target_segments"][:, :-1]) > 0
    np.testing.assert_allclose(np.asarray(forward(batch | garbage))[real], np.asarray(logits)[real], rtol=1e-5, atol=1e-5)
    other = forward(batch | {"source": batch["source"].at[:, 0].set(ord("q"))})
    assert np.abs(other[:, 0] - logits[:, 0]).max() > 1e-3  # the first token is chosen from the whole source


@pytest.mark.parametrize("model", MODELS)
def test_search_with_a_cache_follows_the_model_without_one(data, model):
    """Greedy search token for token, and every beam's score, from full passes over what was written."""
    task, batch = build(data, model), toys.batch_of(data)
    params = started(task, batch)
    length = 5
    forward = jax.jit(lambda target: jax.nn.log_softmax(task.forward(params, batch | {
        "target": target, "target_segments": jnp.ones_like(target)})["logits"]))  # fmt: skip
    target = np.full((8, length + 1), BOS, np.int32)
    done, total = np.zeros(8, bool), np.zeros(8)
    for i in range(length):
        logp = np.asarray(forward(target))[:, i]
        token = np.where(done, EOS, logp.argmax(axis=1))
        total += np.where(done, 0, logp.max(axis=1))
        target[:, i + 1], done = token, done | (token == EOS)
    greedy = jax.jit(lambda p: task.translate(p, batch, Search(beams=1), length))(params)
    np.testing.assert_array_equal(greedy, target[:, 1:])

    def beams(p):
        cache, step, start = task.model.begin(p, batch, length, 3)
        search = Search(beams=3, length_penalty=0.0)
        return search(step, cache, jnp.full(8, BOS), length=length, eos=EOS, start=start)

    tokens, scores = jax.jit(beams)(params)
    written = np.concatenate([np.full((8, 1), BOS), tokens], axis=1).astype(np.int32)
    logp = np.take_along_axis(np.asarray(forward(written)), written[:, 1:, None], axis=2)[..., 0]
    counted = np.cumsum(np.asarray(tokens) == EOS, axis=1) - (np.asarray(tokens) == EOS) == 0
    np.testing.assert_allclose(scores, (logp * counted).sum(axis=1), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_mean_over_the_targets_tokens(data):
    task, batch = build(data, "encoder_decoder", label_smoothing=0.2), toys.batch_of(data)
    params = started(task, batch)
    loss, metrics = jax.jit(lambda p: task.loss(p, batch, jax.random.key(0), train=True))(params)
    logits = jax.jit(lambda p: task.forward(p, batch)["logits"])(params)
    labels, weight = batch["target"][:, 1:], batch["target_segments"][:, 1:]
    hard, soft = (optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 262), a)) for a in (0.0, 0.2))
    count = int(weight.sum())
    assert float(metrics["weight"]) == count
    assert float(metrics["cross_entropy"]) == pytest.approx(float((hard * weight).sum()) / count, rel=1e-5)
    assert float(loss) == pytest.approx(float((soft * weight).sum()) / count, rel=1e-5)


@pytest.mark.parametrize("model", ["encoder_decoder", pytest.param("prefix", marks=pytest.mark.slow)])
def test_it_learns_and_is_measured(data, model, tmp_path):
    task = build(data, model, label_smoothing=0.0)
    batch = toys.batch_of(data, data.size)
    params, optimizer = started(task, batch), optax.adam(1e-2)

    @jax.jit
    def steps(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0), train=True)[0])(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), None, length=250)[0]

    params, _ = steps(params, optimizer.init(params))
    logged = []
    evaluation = EvaluationData(data, data, workdir=str(tmp_path), log=logged.append)
    found = flat(TranslationMetrics(search=Search(beams=2), batch_size=24)(Encoder(task, params), evaluation))
    assert found["chrf"] > 90 and found["copied_source/bleu"] < 10
    assert "nrefs:1|case:mixed" in logged[0]
    rows = [json.loads(line) for line in (tmp_path / "translations.jsonl").read_text().splitlines()]
    assert [r["source"] for r in rows] == [data.source[i]["source"] for i in range(data.size)]
    assert np.mean([r["translation"] == r["reference"] for r in rows]) > 0.8
    assert json.loads((tmp_path / "bleu.json").read_text())["signatures"]["bleu"] in logged[0]


def test_bleu_is_sacrebleus():
    scores, signatures = score(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert scores["bleu"] == pytest.approx(100) and "tok:13a" in signatures["bleu"] and scores["length_ratio"] == 1
    scores, _ = score(["the cat sat on the"], ["the cat sat on the mat"])
    assert scores["bleu"] == pytest.approx(100 * np.exp(1 - 6 / 5))  # all n-grams right, brevity penalty alone


def test_detokenized(data):
    tokenizer = data.info.tokenizer
    assert detokenized(tokenizer, np.array([BOS, 97, 98, EOS, 97])) == "ab"
    assert detokenized(tokenizer, np.array([97, 98])) == "ab"


def test_settings_are_checked(data):
    with pytest.raises(UserError, match="set model.shared_embedding=False"):
        build(data, "encoder_decoder", init=dict(decoder="x"))
    model = dict(name="encoder_decoder", encoder=SHAPE | dict(context_length=3))
    with pytest.raises(UserError, match="model.encoder.context_length=3: must be at least 6"):
        Translation.from_config(ConfigDict(dict(task={}, model=model)), data.info)
    with pytest.raises(UserError, match="model.name='vit'"):
        Translation.from_config(ConfigDict(dict(task={}, model=dict(name="vit"))), data.info)
