"""Language-model evaluators against sums written out by hand."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict

from ssl_jax.data.text import corpus
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.language_modelling import (
    Lambada,
    MaskedTokenLoss,
    NextTokenLoss,
    Perplexity,
    sliding_windows,
    token_counts,
)
from ssl_jax.errors import UserError
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.reports.records import flat
from tests.keys import toy_key

TEXT = "the quick brown fox jumps over the lazy dog. " * 8


@functools.cache
def setup(name, folder):
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name == "masked_token" else ()
    section = dict(
        train=f"text:{folder}/train.txt", test=f"text:{folder}/test.txt", block=16, batch_size=4, cache=f"{folder}/cache"
    )
    section["tokenizer"] = dict(special_tokens=special)
    build = functools.partial(corpus.build if name == "next_token" else corpus.build_sequences, section)
    train, test = build(split="train", train=False), build(split="test", train=False)
    config = dict(task=dict(name=name), model=dict(width=16, depth=1, heads=2, init_std=0.3), training={})
    task = {"next_token": NextToken, "masked_token": MaskedToken}[name].from_config(ConfigDict(config), build().info)
    length = 16 + (name == "next_token")  # its last token is only predicted
    params = jax.jit(task.init)(toy_key(0), {"tokens": jnp.zeros((1, length), jnp.int32)})
    return Encoder(task, params), EvaluationData(train, test)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    (path / "train.txt").write_text(TEXT)
    (path / "test.txt").write_text(TEXT[:101])
    return path


def log_likelihoods(encoder, tokens):
    """log p of each token but the first, from one pass."""
    logits = jax.jit(encoder.task.forward)(encoder.params, {"tokens": np.array([tokens[:-1]])})["logits"][0]
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    return log_p[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_whole_split_loss(folder, batch_size):
    """Windows that do not overlap, every token but the first once, whatever the batch."""
    encoder, data = setup("next_token", folder)
    tokens = data.test.info.tokenizer.encode(TEXT[:101])
    total = 0.0
    for start in range(0, 96, 16):
        total -= log_likelihoods(encoder, tokens[start : start + 17]).sum()
    total -= log_likelihoods(encoder, tokens[84:])[-4:].sum()  # the last window ends with the text: 4 of its labels are new
    found = flat(NextTokenLoss(batch_size=batch_size)(encoder, data))
    np.testing.assert_allclose(found["loss"], total / 100, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], math.exp(total / 100), rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_byte"], total / math.log(2) / 101, rtol=1e-5)


def test_unigram_baseline_is_the_cross_entropy_of_the_frequencies(folder):
    encoder, data = setup("next_token", folder)
    counts, size = token_counts(data.train), data.train.info.tokenizer.size
    assert counts.sum() == len(TEXT)
    p = (counts + 1) / (len(TEXT) + size)
    test = np.bincount(data.test.info.tokenizer.encode(TEXT[:101]), minlength=size) / 101
    found = flat(NextTokenLoss()(encoder, data))
    np.testing.assert_allclose(found["unigram/loss"], -(test * np.log(p)).sum(), rtol=1e-9)


@pytest.mark.parametrize(("length", "context", "stride"), [(5, 8, 4), (9, 8, 4), (30, 8, 3), (30, 8, 8), (31, 7, 1)])
def test_sliding_windows_predict_every_token_once(length, context, stride):
    """In order, with at least context - stride tokens before each but in the first window."""
    seen = []
    for number, (tokens, n) in enumerate(sliding_windows(list(range(length)), context, stride)):
        assert len(tokens) <= context + 1
        assert number == 0 or len(tokens) - n >= min(context - stride + 1, tokens[-1] - n + 1)
        seen += tokens[-n:]
    assert seen == list(range(1, length))


def test_perplexity_by_token_word_and_byte(folder):
    """Stride 4 over a text with characters of several bytes, written out."""
    encoder, data = setup("next_token", folder)
    path = folder / "other.txt"
    path.write_text("the lazy fox jumps over the brown dog. the dog jumps.")
    tokens = data.test.info.tokenizer.encode(path.read_text())
    nll = -sum(log_likelihoods(encoder, row)[-n:].sum() for row, n in sliding_windows(tokens, 16, 4))
    found = flat(Perplexity(text=f"text:{path}", stride=4)(encoder, data))
    words, size = len(path.read_text().split()), len(path.read_bytes())
    np.testing.assert_allclose(found["loss"], nll / (len(tokens) - 1), rtol=1e-5)
    np.testing.assert_allclose(found["word"], math.exp(nll / words), rtol=1e-4)
    np.testing.assert_allclose(found["byte"], math.exp(nll / size), rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_byte"], nll / size / math.log(2), rtol=1e-5)
    own = flat(Perplexity(stride=4)(encoder, data))
    assert set(own) == set(found)


def test_lambada_scores_the_last_word(folder):
    """Accuracy: every token of the last word is the likeliest; perplexity: of the whole word. A
    passage of one word is left out."""
    encoder, data = setup("next_token", folder)
    tokenizer = data.test.info.tokenizer
    passages = ["the lazy dog", "over the fox"]
    path = folder / "lambada.jsonl"
    path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in [*passages, "oneword"]))
    found = flat(Lambada(text=f"jsonl:{path}", batch_size=2)(encoder, data))
    nll, right = [], []
    for passage in passages:
        tokens = tokenizer.encode(passage)
        n = len(passage.split()[-1]) + 1
        nll.append(-log_likelihoods(encoder, tokens)[-n:].sum())
        logits = jax.jit(encoder.task.forward)(encoder.params, {"tokens": np.array([tokens])})["logits"][0]
        right.append((np.asarray(jnp.argmax(logits, -1))[-n - 1 : -1] == tokens[-n:]).all())
    np.testing.assert_allclose(found["perplexity"], math.exp(np.mean(nll)), rtol=1e-4)
    assert found["accuracy"] == np.mean(right)
    assert found["passages"] == 2


@pytest.mark.parametrize("batch_size", [2, 7])
def test_masked_token_loss_does_not_depend_on_the_batch(folder, batch_size):
    """Masks follow the example's place in the data set; baselines stand beside."""
    encoder, data = setup("masked_token", folder)
    found = flat(MaskedTokenLoss(batch_size=batch_size)(encoder, data))
    whole = flat(MaskedTokenLoss(batch_size=64)(encoder, data))
    assert set(found) == {"loss", "accuracy", "unigram/loss", "most_frequent/accuracy"}
    for name in found:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)


def test_masked_token_loss_at_a_ratio_that_is_not_the_models(folder):
    """Equal to the loss of a task that hides so much, and not to that of its own."""
    encoder, data = setup("masked_token", folder)
    found = flat(MaskedTokenLoss(ratio=0.5)(encoder, data))
    own = flat(MaskedTokenLoss()(encoder, data))
    mask = dataclasses.replace(encoder.task.settings.mask, ratio=0.5)
    task = dataclasses.replace(encoder.task, settings=dataclasses.replace(encoder.task.settings, mask=mask))
    assert found == flat(MaskedTokenLoss()(Encoder(task, encoder.params), data)) and found["loss"] != own["loss"]
    with pytest.raises(UserError, match="ratio=1.5: must lie in"):
        MaskedTokenLoss(ratio=1.5)


def test_the_wrong_task_is_named(folder):
    encoder, data = setup("masked_token", folder)
    with pytest.raises(UserError, match="this evaluator needs task.name='next_token', not 'masked_token'"):
        flat(NextTokenLoss()(encoder, data))
    with pytest.raises(UserError, match="text is missing"):
        Lambada()
    encoder, data = setup("next_token", folder)
    with pytest.raises(UserError, match="stride=99: must not exceed the model's context of 16"):
        flat(Perplexity(stride=99)(encoder, data))
