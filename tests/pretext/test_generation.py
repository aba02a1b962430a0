"""Generation: the cache changes nothing, sampling obeys its limits, mistakes are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import BERT_SPECIAL, CharacterTokenizer
from ssl_jax.downstream.supervised.decoding import Search
from ssl_jax.errors import UserError
from ssl_jax.pretext.generation import fill_mask, generate, prompt_tokens, sample_token
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.task import DataInfo
from tests import tokenizer_toys as toys
from tests.keys import toy_key

LETTERS = "abcdefghij"
MODELS = {
    "gpt2": dict(),
    "modern": dict(positions="rope", norm="rms", gated=True, activation="silu", kv_heads=2, qk_norm=True),
    "padded vocabulary": dict(vocabulary_multiple=16, tied=False, output_bias=True),
}


def next_token(special=(), **model):
    tokenizer = CharacterTokenizer(LETTERS, special)
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((33,), jnp.int32)}, tokenizer=tokenizer)
    config = dict(width=16, depth=2, heads=4, init_std=0.5) | model
    task = NextToken.from_config(ConfigDict(dict(task=dict(name="next_token"), model=config, training={})), info)
    params = jax.jit(task.init)(toy_key(4), {"tokens": jnp.zeros((1, 33), jnp.int32)})
    return task, params


def without_cache(task, params, prompt, count):
    """The likeliest token again and again, each from a pass over the whole text."""
    forward = jax.jit(lambda tokens: task.forward(params, {"tokens": tokens})["logits"])
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(jnp.argmax(forward(padded)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5, 6, 7]])
def test_greedy_generation_equals_generation_without_a_cache(name, prompt):
    """Token for token, up to the last place of the context."""
    task, params = next_token(**MODELS[name])
    count = 33 - len(prompt)
    out = generate(task, params, prompt, max_tokens=count, temperature=0.0, num_samples=2)
    expected = without_cache(task, params, prompt, count)
    assert len(set(expected)) > 2  # else the test says little
    np.testing.assert_array_equal(out, [expected, expected])


def test_longer_than_the_context_goes_on_from_its_last_half():
    task, params = next_token()
    out = generate(task, params, [1, 2, 3], max_tokens=80, temperature=0.0)[0]
    text = [1, 2, 3, *out.tolist()]
    assert text[3:33] == without_cache(task, params, [1, 2, 3], 30)
    assert text[33:50] == without_cache(task, params, text[17:33], 17)


def test_samples_differ_and_repeat_with_the_seed():
    task, params = next_token()
    draw = lambda seed: generate(task, params, [1], max_tokens=20, num_samples=3, key=seed)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert len({tuple(row) for row in draw(0)}) == 3


def test_end_of_text_ends_a_row():
    task, params = next_token(special=("<|endoftext|>",), output_bias=True)
    params["head"]["bias"] = params["head"]["bias"].at[10].set(3.0)
    out = generate(task, params, [1], max_tokens=30, num_samples=8)
    ended = 0
    for row in out:
        first = np.flatnonzero(row == 10)
        if len(first):
            ended += 1
            assert (row[first[0] :] == 10).all()
    assert ended > 2


def test_top_k_and_top_p_keep_what_they_should():
    """Frequencies of 20,000 draws against the renormalised distribution; what is excluded is never drawn."""
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    scores = jnp.log(jnp.tile(p, (20_000, 1))).astype(jnp.float32)
    for options, kept in (
        (dict(top_k=2, top_p=None), 2),
        (dict(top_k=None, top_p=0.7), 2),
        (dict(top_k=None, top_p=0.71), 3),
        (dict(top_k=4, top_p=0.4), 1),
        (dict(top_k=None, top_p=None), 5),
    ):
        drawn = np.bincount(sample_token(jax.random.key(0), scores, 1.0, **options), minlength=5) / 20_000
        expected = np.where(np.arange(5) < kept, p, 0) / p[:kept].sum()
        assert (drawn[kept:] == 0).all()
        np.testing.assert_allclose(drawn, expected, atol=5 * (0.25 / 20_000) ** 0.5)


def test_temperature_sharpens():
    p = np.array([0.6, 0.4])
    scores = jnp.log(jnp.tile(p, (20_000, 1))).astype(jnp.float32)
    drawn = np.mean(np.asarray(sample_token(jax.random.key(0), scores, 0.5, None, None)) == 0)
    np.testing.assert_allclose(drawn, 0.36 / 0.52, atol=5 * (0.25 / 20_000) ** 0.5)
    assert (sample_token(jax.random.key(0), scores, 0.0, None, None) == 0).all()


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([1] * 40, {}, "--prompt: has 40 tokens, but the model's context holds 32; shorten it"),
        ([], {}, "--prompt: is empty"),
        ([1], dict(top_k=0), "--top_k=0: must be at least 1"),
        ([1], dict(top_p=0.0), "--top_p=0.0: must lie in"),
        ([1], dict(temperature=-1.0), "--temperature=-1.0: must be finite and not negative"),
        ([1], dict(num_samples=0), "--num_samples=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(prompt, options, says):
    task, params = next_token()
    with pytest.raises(UserError, match=says):
        generate(task, params, prompt, **options)


def test_fill_mask_lists_the_likeliest_tokens():
    """A model whose output bias favours two letters names them first, with the probabilities of its own softmax."""
    tokenizer = CharacterTokenizer(LETTERS, BERT_SPECIAL)
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((16,), jnp.int32)}, tokenizer=tokenizer)
    config = dict(task=dict(name="masked_token"), model=dict(width=16, depth=1, heads=2, output_bias=True), training={})
    task = MaskedToken.from_config(ConfigDict(config), info)
    params = jax.jit(task.init)(toy_key(0), {"tokens": jnp.zeros((1, 16), jnp.int32)})
    params["head"]["bias"] = np.float32(np.eye(len(params["head"]["bias"]))[[4, 7]].T @ [20, 19])
    found = fill_mask(task, params, tokenizer, "ab[MASK]c[MASK]", top=3)
    assert [len(row) for row in found] == [3, 3]
    assert [word for word, _ in found[0][:2]] == ["e", "h"]
    ids = [tokenizer.cls_id, 0, 1, tokenizer.mask_id, 2, tokenizer.mask_id, tokenizer.sep_id]
    scores = np.asarray(jax.jit(task.forward)(params, {"tokens": np.array([ids])})["logits"])[0, 3]
    np.testing.assert_allclose(found[0][0][1], scipy.special.softmax(scores)[4], rtol=1e-4)
    with pytest.raises(UserError, match=r"contains no \[MASK\]"):
        fill_mask(task, params, tokenizer, "abc")
    with pytest.raises(UserError, match="has 21 tokens, but the model's context holds 16"):
        fill_mask(task, params, tokenizer, "a" * 18 + "[MASK]")


# A model directory's own tokens -------------------------------------------------------------------------------------


def of_tokenizer(tokenizer, context=32, **model):
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((context + 1,), jnp.int32)}, tokenizer=tokenizer)
    config = dict(width=16, depth=1, heads=4, output_bias=True) | model
    task = NextToken.from_config(ConfigDict(dict(task=dict(name="next_token"), model=config, training={})), info)
    return task, jax.jit(task.init)(toy_key(0), {"tokens": jnp.zeros((1, context + 1), jnp.int32)})


def favouring(params, *tokens):
    return {**params, "head": {**params["head"], "bias": params["head"]["bias"].at[jnp.array(tokens)].set(50.0)}}


@pytest.mark.parametrize("last", ["<|end_of_text|>", "<|eot_id|>"])
def test_generation_stops_at_any_of_the_end_tokens(last):
    """generation_config.json may name several; those that do not end a text are tokens like others."""
    told = {"generation_config.json": '{"eos_token_id": [1, 2]}'}
    tokenizer = toys.llama3(**told)
    end = tokenizer.vocabulary[last]
    task, params = of_tokenizer(tokenizer)
    row = generate(task, favouring(params, end), tokenizer.encode("the"), max_tokens=5, temperature=0.0)[0]
    assert row[0] == end and (row[1:] == 1).all()
    plain = generate(task, favouring(params, tokenizer.vocabulary["<|begin_of_text|>"]), [5], max_tokens=3, temperature=0.0)
    assert plain.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", toys.KINDS)
def test_prompts_begin_as_their_tokenizer_has_it(kind):
    tokenizer = toys.KINDS[kind]()
    assert prompt_tokens(tokenizer, "the cat") == [*tokenizer.prefix_ids, *tokenizer.encode("the cat")]
    assert prompt_tokens(tokenizer, "") == list(tokenizer.begin_ids) != []
    with pytest.raises(UserError, match="--prompt: is empty, and this tokenizer has no token that begins a text"):
        prompt_tokens(CharacterTokenizer("ab"), "")


def test_ids_that_the_tokenizer_has_not_are_never_drawn():
    """A published table may have more rows than its tokenizer has tokens."""
    tokenizer = CharacterTokenizer(LETTERS, BERT_SPECIAL)
    task, params = of_tokenizer(tokenizer, vocabulary=40)
    params = favouring(params, 30, 39)
    assert generate(task, params, [1], max_tokens=8, num_samples=4).max() < tokenizer.size
    info = DataInfo(shapes={"tokens": jax.ShapeDtypeStruct((16,), jnp.int32)}, tokenizer=tokenizer)
    config = dict(task=dict(name="masked_token"), model=dict(width=16, depth=1, heads=2, output_bias=True, vocabulary=40))
    masked = MaskedToken.from_config(ConfigDict(config | dict(training={})), info)
    params = favouring(jax.jit(masked.init)(toy_key(0), {"tokens": jnp.zeros((1, 16), jnp.int32)}), 30)
    assert all(word for word, _ in fill_mask(masked, params, tokenizer, "ab[MASK]", top=3)[0])


def test_texts_are_generated_under_64_bit_jax():
    """Caches, counters and beams keep their types where JAX's defaults are 64 bits wide."""
    task, params = next_token(positions="rope", width=8, depth=1)
    params = jax.tree.map(np.asarray, params)
    logits = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    with jax.enable_x64(True):
        assert generate(task, params, [1, 2], max_tokens=5, top_k=3).shape == (1, 5)
        for beams in (1, 2):
            step = lambda tokens, index, rows: (rows, rows)
            found, _ = Search(beams=beams)(step, jnp.asarray(logits), jnp.zeros(2, jnp.int32), length=3, eos=0)
            assert found.shape == (2, 3) and found.dtype == jnp.int32
