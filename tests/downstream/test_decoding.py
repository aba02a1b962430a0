"""Search over small random models, against exhaustive enumeration in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.downstream.supervised.decoding import Search, beam_search, greedy, length_norm
from ssl_jax.errors import UserError

VOCABULARY, LENGTH, EOS, FIRST = 4, 3, 0, 1


def table(seed, scale=2.0):
    """Log probabilities that depend on the place and on all tokens so far: f64[place, hash of history, vocabulary]."""
    logits = np.random.default_rng(seed).normal(size=(LENGTH, 64, VOCABULARY)) * scale
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


def model(logp):
    """The step function over `table`; its cache holds a hash of the row's history."""

    def step(tokens, index, cache):
        history = (cache["history"] * 5 + tokens) % 61
        return jnp.asarray(logp)[index, history], {"history": history, "length": cache["length"] + 1}

    return step


def empty(batch):
    return {"history": jnp.zeros(batch, jnp.int32), "length": jnp.int32(0)}


def every_sequence(logp, alpha):
    """(score, tokens filled with EOS) of all complete outputs, best first."""
    found = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=LENGTH):
        end = tokens.index(EOS) + 1 if EOS in tokens else LENGTH
        tokens = tokens[:end]
        history, total = 0, 0.0
        for i, (last, token) in enumerate(zip((FIRST, *tokens), tokens, strict=False)):
            history = (history * 5 + last) % 61
            total += logp[i, history, token]
        found[tokens + (EOS,) * (LENGTH - end)] = total / float(length_norm(end, alpha))
    return sorted(((score, tokens) for tokens, score in found.items()), reverse=True)


@functools.partial(jax.jit, static_argnames=("beams", "alpha"))
def search(logp, beams, alpha):
    return beam_search(model(logp), empty(2), jnp.full(2, FIRST), length=LENGTH, eos=EOS, beams=beams, length_penalty=alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_enough_beam_finds_the_best_sequences(alpha):
    for seed in range(10):
        logp = table(seed)
        sequences, scores = search(logp, VOCABULARY**LENGTH, alpha)
        expected = every_sequence(logp, alpha)
        for row in range(2):
            np.testing.assert_allclose(scores[row, : len(expected)], [s for s, _ in expected], rtol=1e-5)
            assert [tuple(s) for s in np.asarray(sequences[row, :5])] == [t for _, t in expected[:5]]


def test_a_narrow_beam_reports_the_true_score_of_what_it_found():
    """The caches follow the beams: a hypothesis that took another's cache would have another score."""
    for seed in range(10):
        logp = table(seed)
        sequences, scores = search(logp, 3, 0.6)
        true = {tokens: score for score, tokens in every_sequence(logp, 0.6)}
        assert len({tuple(s) for s in np.asarray(sequences[0])}) == 3
        for tokens, score in zip(np.asarray(sequences[0]), np.asarray(scores[0]), strict=True):
            assert score == pytest.approx(true[tuple(tokens)], rel=1e-5)
        assert list(scores[0]) == sorted(scores[0], reverse=True)


def test_greedy_takes_the_likeliest_token_each_time():
    run = jax.jit(lambda logp: greedy(model(logp), empty(3), jnp.array([1, 2, 3]), length=LENGTH, eos=EOS))
    for seed in range(10):
        logp = table(seed)
        tokens, score = run(logp)
        for row, first in enumerate((1, 2, 3)):
            history, last, expected, total = 0, first, [], 0.0
            for i in range(LENGTH):
                history = (history * 5 + last) % 61
                last = int(np.argmax(logp[i, history]))
                total += logp[i, history, last]
                expected.append(last)
                if last == EOS:
                    break
            assert list(np.asarray(tokens[row])) == expected + [EOS] * (LENGTH - len(expected))
            assert score[row] == pytest.approx(total, rel=1e-5)


def test_a_higher_length_penalty_gives_longer_outputs():
    lengths = [
        np.mean([np.sum(np.asarray(search(table(seed, 0.5), VOCABULARY**LENGTH, alpha)[0][0, 0]) != EOS) for seed in range(20)])
        for alpha in (0.0, 0.6, 2.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


def test_settings_say_what_they_want():
    with pytest.raises(UserError, match="beams=0: must be at least 1"):
        Search(beams=0)
    tokens, _ = Search(beams=1)(model(table(0)), empty(1), jnp.full(1, FIRST), length=LENGTH, eos=EOS)
    assert tokens.shape == (1, LENGTH)
