"""Text generation with a key-value cache, in one jitted loop over tokens; and filling masks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ssl_jax.data.sources.files import without_surrogates
from ssl_jax.errors import UserError
from ssl_jax.models.cross_entropy import logits
from ssl_jax.randomness import stream
from ssl_jax.task import Params

MULTIPLE = 64  # prompts are padded to multiples of this number, to compile few programs


def sample_token(
    key: Key[Array, ""], scores: Float[Array, "batch vocabulary"], temperature: float, top_k: int | None, top_p: float | None
) -> Int[Array, "batch"]:
    """Sample one token per row, the most likely one at temperature 0.

    `top_k` restricts sampling to the k most likely tokens, `top_p` to the smallest set of most likely tokens whose
    probabilities add up to p (Holtzman et al. 2020, section 3.1).
    """
    if temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if top_p is not None and top_p < 1:
        ordered = -jnp.sort(-scores, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        keep = jnp.cumsum(p, axis=-1) - p < top_p  # the first is always kept
        least = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


def generate(
    task: Any,
    params: Params,
    prompt_tokens: Int[np.ndarray, "time"] | list[int],
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_samples: int = 1,
    key: Key[Array, ""] | int = 0,
) -> Int[np.ndarray, "samples {max_tokens}"]:
    """Return `num_samples` continuations of the prompt by a NextToken task, without the prompt itself.

    With the cache, each new token costs a forward pass over one token. A text that outgrows the model's context is continued
    from its last context / 2 tokens. A row ends at the first of the tokenizer's `stop_ids` and is padded with `stop_ids[0]`.
    Raise UserError if the prompt is empty or too long, or if a setting is out of range.
    """
    _check(max_tokens, temperature, top_k, top_p, num_samples)
    prompt = np.asarray(prompt_tokens, np.int32)
    model, head, context = task.model, task.head, task.model.context
    if len(prompt) == 0:
        raise UserError("--prompt: is empty; give at least one token")
    if len(prompt) > context:
        raise UserError(f"--prompt: has {len(prompt):,} tokens, but the model's context holds {context:,}; shorten it")
    tokenizer = task.info.tokenizer
    stop = () if tokenizer is None else tokenizer.stop_ids
    vocabulary = head.vocabulary if tokenizer is None else min(head.vocabulary, tokenizer.size)
    key = stream(key, "generate") if isinstance(key, int) else key
    text = np.tile(prompt, (num_samples, 1))
    done = np.zeros(num_samples, bool)
    left = max_tokens
    while left:
        used = text.shape[1] if text.shape[1] <= context else max(1, context // 2)
        most = context - used + 1  # the model never reads the last new token
        if most < min(left, context // 2 + 1) and text.shape[1] > len(prompt):
            used = max(1, context // 2)
            most = context - used + 1
        count = min(left, most)
        padded = min(-(-used // MULTIPLE) * MULTIPLE, context)
        window = np.zeros((num_samples, padded), np.int32)
        window[:, :used] = text[:, text.shape[1] - used :]
        new = _segment(
            model, head, params, window, used, done, jax.random.fold_in(key, max_tokens - left), count=count, stop=stop,
            vocabulary=vocabulary, temperature=float(temperature), top_k=top_k, top_p=top_p,
        )  # fmt: skip
        text = np.concatenate([text, np.asarray(new)], axis=1)
        done = np.isin(text[:, len(prompt) :], stop).any(axis=1)
        left -= count
    return text[:, len(prompt) :]


def _check(max_tokens, temperature, top_k, top_p, num_samples) -> None:
    for name, value in (("max_tokens", max_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature={temperature}: must be finite and not negative; 0 takes the most likely token")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k={top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top_p={top_p}: must lie in (0, 1]")


@functools.partial(jax.jit, static_argnames=("model", "head", "count", "stop", "vocabulary", "temperature", "top_k", "top_p"))
def _segment(model, head, params, window, used, done, key, *, count, stop, vocabulary, temperature, top_k, top_p):
    """Return `count` new tokens after the first `used` of `window` i32[samples, padded].

    One forward pass reads the window, then each token takes one pass. Only the first `vocabulary` tokens are sampled, because
    the model's output layer may be larger than its tokenizer.
    """
    samples, padded = window.shape
    rows, used = jnp.arange(samples), jnp.asarray(used, jnp.int32)
    fill = stop[0] if stop else 0

    def scores_of(hidden):
        top = params.get("head", {})
        features, weight, bias = head.apply({"params": top}, hidden, params["transformer"]["token_embedding"])
        return logits(features, weight, bias)[..., :vocabulary]

    def draw(i, hidden, done):
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, i), row))(rows)
        pick = lambda key, row: sample_token(key, row[None], temperature, top_k, top_p)[0]
        token = jax.vmap(pick)(keys, scores_of(hidden))
        token = jnp.where(done, jnp.int32(fill), token)
        return token, done | jnp.isin(token, jnp.array(stop, jnp.int32))

    apply = functools.partial(model.apply, {"params": params["transformer"]})
    caches = model.empty_caches(samples, max(padded, min(model.context, padded + count)))
    hidden, inner = apply(window, caches=caches)
    caches = [{**cache, "length": used} for cache in inner["caches"]]  # new tokens overwrite the padding
    token, done = draw(0, jax.lax.dynamic_index_in_dim(hidden, used - 1, 1, keepdims=False), done)
    out = jnp.full((samples, count), fill, jnp.int32).at[:, 0].set(token)

    def unfinished(carry):
        return (carry[0] < count) & ~jnp.all(carry[4])

    def step(carry):
        i, token, caches, out, done = carry
        place = (used + i - 1)[None, None]
        hidden, inner = apply(token[:, None], positions=place, caches=caches)
        token, done = draw(i, hidden[:, 0], done)
        return i + 1, token, inner["caches"], out.at[:, i].set(token), done

    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), token, caches, out, done))[3]


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the prompt's token ids after the tokenizer's own prefix (LLaMA's <s>), or, for an empty prompt, the token that
    begins a text; raise UserError if the tokenizer has no such token."""
    ids = tokenizer.encode(prompt)
    found = [*tokenizer.prefix_ids, *ids] if ids else list(tokenizer.begin_ids)
    if not found:
        raise UserError("--prompt: is empty, and this tokenizer has no token that begins a text; give at least one character")
    return found


def fill_mask(task: Any, params: Params, tokenizer: Any, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """Return, for every [MASK] in `text`, the `top` most likely tokens under a MaskedToken task and their probabilities.

    Raise UserError if the text has no mask or is longer than the model's context.
    """
    mask = tokenizer.require("mask")
    name = tokenizer.token(mask)
    text = without_surrogates(text).replace("[MASK]", name)
    if name not in text:
        raise UserError(f"--text={text!r}: contains no {name}; write it where a word is missing")
    if top < 1:
        raise UserError(f"--top={top}: must be at least 1")
    ids = tokenizer.encode(text)
    if mask not in ids:  # character and byte tokenizers do not recognise special tokens in a text
        ids = [i for part in text.split(name) for i in (*tokenizer.encode(part), mask)][:-1]
    ids, _ = tokenizer.template(pair=False).fill(ids)
    context = task.model.context
    if len(ids) > context:
        raise UserError(f"--text: has {len(ids):,} tokens, but the model's context holds {context:,}; shorten it")
    length = min(-(-len(ids) // MULTIPLE) * MULTIPLE, context)
    tokens = np.full((1, length), tokenizer.pad_id or 0, np.int32)
    tokens[0, : len(ids)] = ids
    batch = {"tokens": tokens, "segments": (np.arange(length) < len(ids)).astype(np.int32)[None]}
    scores = jax.jit(task.forward)(params, batch)["logits"][0, : len(ids)]
    p = np.asarray(jax.nn.softmax(scores, axis=-1))
    found = []
    for place in np.flatnonzero(np.asarray(ids) == mask):
        best = np.argsort(-p[place, : tokenizer.size])[:top]
        found.append([(_word(tokenizer, int(i)), float(p[place, i])) for i in best])
    return found


def _word(tokenizer: Any, index: int) -> str:
    """Return a token as text; continuation pieces such as "##ing" and special tokens keep their names."""
    token = tokenizer.token(index)
    return token if token.startswith("##") or index in tokenizer.special_ids else tokenizer.decode([index]).strip() or token
