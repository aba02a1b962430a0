"""Scores of texts under tokenizers of every published kind, against logits of the whole text."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators import language_modelling
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.language_modelling import Lambada, Perplexity, continuation, score, sliding_windows
from ssl_jax.errors import UserError
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.reports.records import flat
from ssl_jax.task import DataInfo
from tests import tokenizer_toys as toys
from tests.keys import toy_key

CONTEXT = 64
CAUSAL = ("metaspace", "llama3", "gpt2", "roberta")


class Data:
    """The part of a data set that scoring reads."""

    def __init__(self, info):
        self.info = info


@functools.cache
def of_kind(kind):
    return setup(toys.KINDS[kind]())


def setup(tokenizer, context=CONTEXT):
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((context + 1,), jnp.int32)}, tokenizer=tokenizer)
    config = dict(task=dict(name="next_token"), model=dict(width=16, depth=1, heads=2, init_std=0.4), training={})
    task = NextToken.from_config(ConfigDict(config), info)
    params = jax.jit(task.init)(toy_key(1), {"tokens": jnp.zeros((1, context + 1), jnp.int32)})
    return Encoder(task, params), EvaluationData(Data(info), Data(info))


def log_likelihoods(encoder, tokens):
    """log p of each token but the first, from one pass over all."""
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(tokens)] = tokens
    forward = encoder.__dict__.setdefault("forward", jax.jit(lambda p, t: encoder.task.forward(p, {"tokens": t})["logits"]))
    log_p = np.asarray(jax.nn.log_softmax(forward(encoder.params, padded)), np.float64)[0]
    return log_p[np.arange(len(tokens) - 1), tokens[1:]]


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"jsonl:{path}"


# Continuations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", toys.KINDS)
def test_a_continuation_is_cut_out_of_the_whole(kind):
    """Its tokens are the last ones of the whole text, and stand for the continuation alone."""
    tokenizer = toys.KINDS[kind]()
    for text in toys.SENTENCES:
        before, _, word = text.rpartition(" ")
        ids, n = continuation(tokenizer, before, " " + word)
        assert ids == [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        assert tokenizer.decode(ids[-n:]).strip() == word
        assert n == len(tokenizer.encode(text)) - len(tokenizer.encode(before))


def test_a_token_that_joins_both_belongs_to_the_continuation():
    tokenizer = toys.gpt2()  # which has " th" as one token, and no "e"
    ids, n = continuation(tokenizer, "a t", "he")
    assert ids == tokenizer.encode("a the") and tokenizer.decode(ids[-n:]).endswith("he")
    assert n == 2 and tokenizer.decode(ids[:-n]) == "a"  # " th" and "e", not " t" and "he"


@pytest.mark.parametrize("kind", CAUSAL)
def test_lambada_scores_the_last_word_of_the_whole_passage(kind, tmp_path):
    encoder, data = of_kind(kind)
    tokenizer = data.test.info.tokenizer
    found = flat(
        Lambada(text=lines(tmp_path / "a.jsonl", [*toys.SENTENCES, "one", "", "two  words "]), batch_size=5)(encoder, data)
    )
    nll = []
    for text in [*toys.SENTENCES, "two  words"]:
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        n = len(tokenizer.encode(text)) - len(tokenizer.encode(text.rpartition(" ")[0].rstrip()))
        nll.append(-log_likelihoods(encoder, ids)[-n:].sum())
    assert found["passages"] == len(nll)
    np.testing.assert_allclose(found["perplexity"], math.exp(np.mean(nll)), rtol=1e-4)


# Whole documents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("empty", [(), (0,), (2,), (5,), (0, 1, 4, 7, 8)])
def test_perplexity_reads_each_document_behind_its_begin_of_text(kind, empty, tmp_path):
    """Empty documents, wherever they stand, change nothing."""
    encoder, data = of_kind(kind)
    tokenizer = data.test.info.tokenizer
    texts = toys.SENTENCES[:5]
    nll = [-log_likelihoods(encoder, [*tokenizer.begin_ids, *tokenizer.encode(text)]) for text in texts]
    for place in empty:
        texts = [*texts[:place], "", *texts[place:]]
    found = flat(Perplexity(text=lines(tmp_path / "a.jsonl", texts))(encoder, data))
    np.testing.assert_allclose(found["token"], math.exp(np.mean(np.concatenate(nll))), rtol=1e-4)
    np.testing.assert_allclose(found["byte"], math.exp(sum(map(np.sum, nll)) / len("".join(texts))), rtol=1e-4)


def test_without_a_token_that_begins_a_text_the_first_is_not_predicted(tmp_path):
    """And an empty document, which then has no token at all, counts nothing."""
    from ssl_jax.data.text.tokenizers import CharacterTokenizer

    tokenizer = CharacterTokenizer(" " + "".join(toys.LETTERS))
    encoder, data = setup(tokenizer)
    texts = toys.SENTENCES[:3]
    nll = np.concatenate([-log_likelihoods(encoder, tokenizer.encode(text)) for text in texts])
    for documents in (texts, [*texts, ""], ["", *texts, "", ""]):
        found = flat(Perplexity(text=lines(tmp_path / "a.jsonl", documents))(encoder, data))
        np.testing.assert_allclose(found["token"], math.exp(nll.mean()), rtol=1e-4)
    with pytest.raises(UserError, match="holds no token to predict"):
        flat(Perplexity(text=lines(tmp_path / "b.jsonl", ["", "a", ""]))(encoder, data))


@pytest.mark.parametrize("length", [0, 1])
def test_windows_of_nothing_are_none(length):
    assert list(sliding_windows(list(range(length)), 8, 4)) == []


# Padding --------------------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch_or_its_padding():
    """Nor on rows of other lengths in the batch; a few lengths are compiled, whatever the rows'."""
    encoder, _ = setup(toys.gpt2(), context=150)
    random = np.random.default_rng(0)
    rows = [(random.integers(0, 200, n).tolist(), min(n - 1, 5)) for n in (3, 34, 90, 2, 17)]
    alone = [next(score(encoder, [row], 1)) for row in rows]
    for batch_size in (2, 8):
        for (a, n, _), (b, m, _) in zip(score(encoder, rows, batch_size), alone, strict=True):
            assert n == m
            np.testing.assert_allclose(a, b, rtol=2e-5)


def test_a_short_text_is_not_padded_to_the_whole_context(monkeypatch):
    shapes = []
    run = language_modelling._token_scores
    monkeypatch.setattr(language_modelling, "_token_scores", lambda m, h, p, t: shapes.append(t.shape) or run(m, h, p, t))
    encoder, _ = setup(toys.gpt2(), context=300)
    list(score(encoder, [(list(range(12)), 3)], 16))
    list(score(encoder, [(list(range(n)), 3) for n in range(4, 40)], 16))
    assert shapes == [(1, 33), (16, 33), (16, 65), (4, 65)]


def test_a_model_that_diverged_has_no_score():
    """A loss that is not finite is no perplexity, and the arg-max of NaN no answer."""
    encoder, _ = setup(toys.gpt2())
    encoder.params["transformer"]["final_norm"]["bias"] = jnp.full(16, jnp.nan)
    with pytest.raises(UserError, match="the model's loss is nan; training diverged"):
        list(score(encoder, [(list(range(12)), 3)], 4))
