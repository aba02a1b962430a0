"""Masking statistics, exactly or within binomial bounds over 10^6 tokens; what reaches the loss; baselines."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import BERT_SPECIAL, CharacterTokenizer
from ssl_jax.errors import UserError
from ssl_jax.pretext.masked_token import MaskedToken, masked_token_baselines
from ssl_jax.pretext.token_masking import TokenMaskSettings, mask_tokens, sample_places
from ssl_jax.task import DataInfo, Task
from tests import tokenizer_toys as toys
from tests.keys import toy_key

TIME, VOCABULARY, MASK = 128, 1000, 999


@functools.cache
def masked_million(**options):
    """10^6 tokens in 7,813 sequences of 128, the first and last of each not eligible."""
    settings = TokenMaskSettings(**options)
    rows = 7813
    tokens = jax.random.randint(jax.random.key(3), (rows, TIME), 0, 900)
    eligible = jnp.ones((rows, TIME), bool).at[:, 0].set(False).at[:, -1].set(False)
    starts = jax.random.bernoulli(jax.random.key(4), 0.7, (rows, TIME)).at[:, :2].set(True)
    run = jax.jit(lambda keys, tokens, eligible, length, starts: mask_tokens(  # constants would be folded, for half a minute
        keys, tokens, eligible, length, settings=settings, mask_id=MASK, vocabulary=VOCABULARY, starts=starts
    ))  # fmt: skip
    masked = run(jax.random.split(jax.random.key(0), rows), tokens, eligible, jnp.full(rows, TIME), starts)
    hidden = np.zeros((rows, TIME), bool)
    np.put_along_axis(hidden, np.asarray(masked.places), True, axis=1)
    return jax.tree.map(np.asarray, (tokens, eligible, starts, masked)), hidden


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_exactly_fifteen_percent_of_every_sequence_is_hidden(unit):
    """round(128 x 0.15) = 19 different, eligible places in every sequence, whatever the unit; their labels stand there."""
    (tokens, eligible, _, masked), hidden = masked_million(unit=unit)
    assert masked.places.shape[1] == 19
    assert (masked.real == 1).all()
    assert (hidden.sum(1) == 19).all()
    assert eligible[hidden].all()
    np.testing.assert_array_equal(masked.labels, np.take_along_axis(tokens, masked.places, 1))
    np.testing.assert_array_equal(masked.tokens[~hidden], tokens[~hidden])


def test_eighty_ten_ten():
    """Of 148,447 hidden tokens: [MASK], a random token, or themselves, within 4 standard deviations; random tokens are
    uniform over the whole vocabulary."""
    (_, _, _, masked), _ = masked_million(unit="token")
    shown = np.take_along_axis(masked.tokens, masked.places, 1).ravel()
    labels, n = masked.labels.ravel(), masked.labels.size
    is_mask = shown == MASK
    kept = (shown == labels) & ~is_mask
    other = ~is_mask & ~kept
    for count, p in (
        (is_mask.sum(), 0.8 + 0.1 / VOCABULARY),
        (kept.sum(), 0.1 + 0.1 / VOCABULARY),
        (other.sum(), 0.1 * (1 - 2 / VOCABULARY)),
    ):
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    drawn = np.bincount(shown[other], minlength=VOCABULARY)
    assert drawn[900:999].sum() > 0  # tokens that the text itself does not hold
    chi2 = ((drawn[:900] - drawn[:900].mean()) ** 2 / drawn[:900].mean()).sum()
    assert abs(chi2 - 899) < 4 * (2 * 899) ** 0.5


def test_every_place_is_hidden_equally_often():
    (_, eligible, _, _), hidden = masked_million(unit="token")
    share = hidden.mean(0)[1:-1]
    p = 19 / 126
    assert np.abs(share - p).max() < 5 * (p * (1 - p) / len(hidden)) ** 0.5


def test_whole_words_are_hidden_together():
    """In each sequence at most one word is hidden in part, and that one is cut at its end."""
    (_, eligible, starts, _), hidden = masked_million(unit="word")
    word = np.cumsum(starts | ~eligible, axis=1)
    partly = 0
    for row in range(500):
        hid, all_ = np.bincount(word[row], hidden[row]), np.bincount(word[row])
        cut = np.flatnonzero((hid > 0) & (hid < all_))
        assert len(cut) <= 1
        for w in cut:
            places = np.flatnonzero(word[row] == w)
            assert hidden[row][places].tolist() == [True] * int(hid[w]) + [False] * int(all_[w] - hid[w])
            partly += 1
    assert partly > 0


def test_span_lengths_are_geometric():
    """With every token a word and few tokens hidden, the first spans show the distribution that was asked for: mean
    3.8 words at p = 0.2 cut at 10 (SpanBERT, section 3.1)."""
    settings = TokenMaskSettings(unit="span", ratio=0.11)
    rows, time = 4000, 512
    key = jax.random.key(1)
    from ssl_jax.pretext.token_masking import span_rank

    rank = jax.random.uniform(key, (rows, time))
    spread = np.asarray(jax.jit(jax.vmap(lambda k, r: span_rank(k, r, settings)))(jax.random.split(key, rows), rank))
    best = (spread == spread.min(axis=1, keepdims=True)).sum(1)  # words in the span of the lowest rank
    lengths = np.arange(1, 11)
    p = 0.2 * 0.8 ** (lengths - 1)
    p /= p.sum()
    mean, std = (lengths * p).sum(), ((lengths**2 * p).sum() - (lengths * p).sum() ** 2) ** 0.5
    assert abs(mean - 3.8) < 0.05
    assert abs(best.mean() - mean) < 4 * std / rows**0.5 + 0.05  # a few are cut at the sequence's end


def test_spans_hide_neighbours():
    """Far more of the hidden tokens have a hidden right neighbour than with single tokens."""
    _, spans = masked_million(unit="span")
    _, single = masked_million(unit="token")
    together = lambda hidden: (hidden[:, 1:] & hidden[:, :-1]).sum() / hidden.sum()
    assert together(spans) > 0.6 > 0.3 > together(single)


@pytest.mark.parametrize("maximum", [None, 20])
def test_counts_are_berts(maximum):
    """n = min(max_predictions, max(1, round(length x 0.15))) as in create_pretraining_data.py, for every length."""
    counts = TokenMaskSettings(maximum=maximum).counts(512)
    expected = [min(maximum or 1000, max(1, int(round(n * 0.15)))) for n in range(513)]
    assert counts.tolist() == expected


def test_short_sequences_hide_fewer_and_padding_never():
    settings = TokenMaskSettings()
    lengths = np.array([3, 10, 40, 64])
    place = np.arange(64)[None]
    eligible = (place > 0) & (place < lengths[:, None] - 1)
    tokens = jnp.ones((4, 64), jnp.int32)
    hide = jax.jit(functools.partial(mask_tokens, settings=settings, mask_id=9, vocabulary=10))
    masked = jax.device_get(hide(jax.random.split(jax.random.key(0), 4), tokens, eligible, lengths))
    assert masked.real.sum(1).tolist() == [1, 2, 6, 10]
    for row in range(4):
        shown = np.asarray(masked.places[row])[np.asarray(masked.real[row]) > 0]
        assert eligible[row][shown].all()
        untouched = np.setdiff1d(np.arange(64), shown)
        assert (masked.tokens[row][untouched] == 1).all()


# The task ---------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnop "


@functools.cache
def make(extra=(), time=32, **model):
    tokenizer = CharacterTokenizer(LETTERS, BERT_SPECIAL)
    names = {"tokens": (time,)} | (
        {"is_random": (), "token_types": (time,), "segments": (time,)} if model.get("pooler") else {}
    )
    info = DataInfo(shapes={k: jax.ShapeDtypeStruct(v, jnp.int32) for k, v in names.items()}, tokenizer=tokenizer)
    settings = dict(width=16, depth=2, heads=2, init_std=0.3, output_bias=True, head_transform=True) | model
    config = dict(
        task=dict(name="masked_token", **{k: dict(v) if isinstance(v, tuple) else v for k, v in extra}), model=settings
    )
    task = MaskedToken.from_config(ConfigDict(config | dict(training={})), info)
    return task, jax.jit(task.init)(toy_key(0), make_batch(task, 1))


def make_batch(task, size=4):
    tokenizer, time = task.info.tokenizer, task.info.shapes["tokens"].shape[0]
    tokens = jax.random.randint(jax.random.key(1), (size, time), 0, len(LETTERS))
    tokens = tokens.at[:, 0].set(tokenizer.cls_id).at[:, -1].set(tokenizer.sep_id)
    batch = {"tokens": tokens, "position": jnp.arange(size), "index": jnp.arange(size) + 100}
    if "is_random" in task.info.shapes:
        batch |= {"is_random": jnp.arange(size) % 2, "token_types": (jnp.arange(time) > 9) * jnp.ones_like(tokens)}
        batch |= {"segments": jnp.ones_like(tokens)}
    return batch


def test_it_is_a_task():
    assert isinstance(make()[0], Task)


def test_loss_is_that_of_the_hidden_tokens_alone():
    """From logits of every place, written out: the mean over the hidden places of minus log p of the hidden token."""
    task, params = make()
    batch, key = make_batch(task), jax.random.key(7)
    loss, metrics = jax.jit(functools.partial(task.loss, train=False))(params, batch, key)
    masked = jax.jit(task.masked)(batch, key)
    log_p = np.asarray(
        jax.jit(lambda tokens: jax.nn.log_softmax(task.forward(params, {"tokens": tokens})["logits"]))(masked.tokens)
    )
    rows = np.arange(4)[:, None]
    expected = -log_p[rows, np.asarray(masked.places), np.asarray(masked.labels)].mean()
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    assert metrics["weight"] == 4 * 5
    assert not (np.asarray(masked.labels) >= len(LETTERS)).any()  # no [CLS] or [SEP]


def test_only_hidden_places_reach_the_output_layer():
    """No array of the compiled loss has a row of vocabulary length for every token."""
    task, params = make(time=64)
    batch = make_batch(task)
    text = jax.jit(lambda p: task.loss(p, batch, jax.random.key(0), train=True)[0]).lower(params).as_text()
    assert f"4x10x{task.head.vocabulary}xf32" in text
    assert f"4x64x{task.head.vocabulary}xf32" not in text


def test_dynamic_masks_follow_the_key_and_static_ones_the_example():
    dynamic, _ = make()
    static, _ = make(extra=(("mask", (("static", True),)),))
    batch = make_batch(dynamic)
    places = lambda task, seed, batch=batch: np.asarray(jax.jit(task.masked)(batch, jax.random.key(seed)).places)
    assert (places(dynamic, 0) != places(dynamic, 1)).any()
    np.testing.assert_array_equal(places(static, 0), places(static, 1))
    moved = {**batch, "position": batch["position"] + 8}
    np.testing.assert_array_equal(places(static, 0), places(static, 0, moved))
    assert (places(static, 0) != places(static, 0, {**batch, "index": batch["index"] + 1})).any()
    assert (places(dynamic, 0) != places(dynamic, 0, moved)).any()


def test_padding_changes_nothing():
    """Tokens in segment 0 are neither hidden nor read."""
    task, params = make()
    batch, key = make_batch(task), jax.random.key(0)
    segments = jnp.array([[1] * 20 + [0] * 12] * 4)
    loss = jax.jit(lambda tokens: task.loss(params, {**batch, "tokens": tokens, "segments": segments}, key, train=False)[0])
    tokens = batch["tokens"].at[:, 19].set(task.info.tokenizer.sep_id)
    np.testing.assert_allclose(loss(tokens), loss(tokens.at[:, 20:].set(0)), rtol=1e-6)


def test_next_sentence_prediction_adds_its_loss():
    task, params = make(extra=(("next_sentence", True),), pooler=True, token_types=2)
    batch, evaluated = make_batch(task), jax.jit(lambda p, b: task.loss(p, b, jax.random.key(0), train=False))
    loss, metrics = evaluated(params, batch)
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + metrics["next_sentence_loss"], rtol=1e-6)
    grads = jax.jit(jax.grad(lambda p: evaluated(p, batch)[1]["next_sentence_loss"]))(params)
    assert jnp.abs(grads["next_sentence"]["pooler"]["dense"]["kernel"]).max() > 0
    other = {**batch, "is_random": 1 - batch["is_random"]}
    assert evaluated(params, other)[1]["next_sentence_accuracy"] == 1 - metrics["next_sentence_accuracy"]
    assert jax.eval_shape(task.features, params, batch)["pooled"].shape == (4, 16)


def test_baselines_know_frequencies_only():
    """Entropy of a known distribution; accuracy of always saying the most frequent token."""
    counts = np.array([700_000, 200_000, 100_000])
    found = masked_token_baselines(counts)
    p = counts / counts.sum()
    np.testing.assert_allclose(found["unigram_entropy"], -(p * np.log(p)).sum(), rtol=1e-4)
    np.testing.assert_allclose(found["most_frequent_accuracy"], 0.7)
    other = masked_token_baselines(counts, np.array([1, 1, 8]))
    np.testing.assert_allclose(other["most_frequent_accuracy"], 0.1)
    np.testing.assert_allclose(other["unigram_entropy"], -(np.array([0.1, 0.1, 0.8]) * np.log(p)).sum(), rtol=1e-4)


def test_the_panel_shows_what_was_hidden():
    task, params = make()
    lines = task.panels(params, make_batch(task), jax.random.key(0))["filled_masks"].lines
    assert len(lines) == 12
    assert "[MASK]" in lines[0] and "[MASK]" not in lines[2]


@pytest.mark.parametrize(
    ("special", "config", "says"),
    [
        ((), {}, r"the vocabulary \(3 tokens\) lacks \[MASK\]"),
        (BERT_SPECIAL, dict(task=dict(mask=dict(ratio=1.2))), r"task.mask.ratio=1.2: must lie in \(0, 1\)"),
        (BERT_SPECIAL, dict(task=dict(mask_ratio=0.2)), "unknown key task.mask_ratio; did you mean task.mask.ratio"),
        (BERT_SPECIAL, dict(task=dict(mask=dict(unit="sentence"))), "task.mask.unit='sentence': must be one of token"),
        (BERT_SPECIAL, dict(task=dict(next_sentence=True)), 'task.next_sentence=True: needs data.packing="pairs"'),
        (BERT_SPECIAL, dict(task=dict(mask=dict(replace=0.9, random=0.2))), "replace=0.9, random=0.2"),
    ],
)
def test_mistakes_are_named(special, config, says):
    tokenizer = CharacterTokenizer("ab ", special)
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((8,), jnp.int32)}, tokenizer=tokenizer)
    base = dict(task=dict(name="masked_token"), model={}, training={})
    with pytest.raises(UserError, match=says):
        MaskedToken.from_config(ConfigDict(base | config), info)


@pytest.mark.parametrize("make", [lambda: toys.metaspace(("<pad>", "<mask>")), toys.roberta, toys.bert])
def test_whole_words_of_every_vocabulary_are_hidden_equally_often(make):
    """All pieces of a word together, and each word as often as any other, whatever marks where words begin."""
    tokenizer = make()
    ids = tokenizer.encode("the cat rams happy rats on hats under a tent")
    tokens = np.array(tokenizer.template(pair=False).fill(ids)[0], np.int32)
    eligible = ~np.isin(tokens, [tokenizer.cls_id, tokenizer.sep_id])
    starts = ~np.array(tokenizer.continues)[tokens]
    given = map(jnp.asarray, (eligible, starts, np.int32(4)))
    sample = functools.partial(sample_places, most=len(ids), settings=TokenMaskSettings(unit="word"))
    run = jax.jit(jax.vmap(sample, (0, None, None, None)))
    places, real = map(np.asarray, run(jax.random.split(jax.random.key(0), 2000), *given))
    hidden = np.zeros((2000, len(tokens)), bool)
    np.put_along_axis(hidden, np.where(real, places, 0), real, axis=1)
    word = np.cumsum(starts | ~eligible) - 1
    words = np.unique(word[eligible])
    assert len(words) == 10 and (hidden.sum(axis=1) == 4).all()
    share = np.array([hidden[:, word == w].any(axis=1).mean() for w in words])
    assert share.min() > 0.5 * share.max() > 0.05  # long words fill the count alone, and are cut more often
