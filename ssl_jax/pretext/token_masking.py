"""Masking of tokens: which tokens are hidden and what replaces them. Pure functions of a key, with exact counts."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.errors import UserError
from ssl_jax.randomness import substream

UNITS = ("token", "word", "span")


@dataclasses.dataclass(frozen=True)
class TokenMaskSettings:
    """`task.mask` (Devlin et al. 2019, section 3.1): a fraction `ratio` of the tokens is hidden; by default 80 % of these
    become [MASK], 10 % a random token, and 10 % stay unchanged.

    `unit`: "token", "word" (all pieces of a word together) or "span" (runs of words of geometric length; SpanBERT, Joshi et al.
    2020, section 3.1). `static`: an example has the same mask in every epoch (see data.duplicates).
    """

    ratio: float = 0.15
    maximum: int | None = None  # hidden tokens per sequence (BERT: 20 at length 128)
    replace: float = 0.8  # fraction of the hidden tokens that become [MASK]
    random: float = 0.1  # fraction that becomes a random token of the whole vocabulary
    unit: str = "token"  # "token", "word" or "span"
    span_p: float = 0.2  # parameter of the geometric distribution of span lengths
    span_maximum: int = 10  # longest span in words
    static: bool = False

    def __post_init__(self):
        if not 0 < self.ratio < 1:
            raise UserError(f"ratio={self.ratio}: must lie in (0, 1)")
        if self.replace < 0 or self.random < 0 or self.replace + self.random > 1 + 1e-9:
            raise UserError(
                f"replace={self.replace}, random={self.random}: neither may be negative and their sum must be at most 1"
            )
        if self.unit not in UNITS:
            raise UserError(f"unit={self.unit!r}: must be one of {', '.join(UNITS)}")
        if self.maximum is not None and self.maximum < 1:
            raise UserError(f"maximum={self.maximum}: must be at least 1")
        if not 0 < self.span_p <= 1 or self.span_maximum < 1:
            raise UserError(f"span_p={self.span_p} must lie in (0, 1] and span_maximum={self.span_maximum} must be at least 1")

    def counts(self, longest: int) -> np.ndarray:
        """Return i32[longest + 1]: the number of hidden tokens for each sequence length, which includes special tokens."""
        n = np.maximum(1, np.round(np.arange(longest + 1) * self.ratio)).astype(np.int32)
        return n if self.maximum is None else np.minimum(n, self.maximum)

    def places(self, length: int) -> int:
        """Return the largest number of hidden tokens in a sequence of at most `length` tokens."""
        return int(self.counts(length)[-1])


@dataclasses.dataclass(frozen=True)
class SpanMask(TokenMaskSettings):
    """Spans of words, all replaced by the mask token (data2vec's text)."""

    ratio: float = 0.35
    unit: str = "span"
    replace: float = 1.0
    random: float = 0.0


class Masked(NamedTuple):
    """A masked batch: up to `hidden` places per sequence, in ascending order."""

    tokens: Int[Array, "batch time"]  # the encoder's input
    places: Int[Array, "batch hidden"]
    labels: Int[Array, "batch hidden"]  # the original tokens at `places`
    real: Float[Array, "batch hidden"]  # 1 for a hidden token, 0 for an unused row


def sample_places(
    key: Key[Array, ""],
    eligible: Bool[Array, "time"],
    starts: Bool[Array, "time"],
    count: Int[Array, ""],
    most: int,
    settings: TokenMaskSettings,
) -> tuple[Int[Array, "most"], Bool[Array, "most"]]:
    """Sample `count` of the eligible places of one sequence, or all of them if there are fewer.

    Return `most` places and a mask that is True where a place is used. `starts` is True at the first token of a word. The last
    sampled unit is truncated, so that the count is exact.
    """
    time = eligible.shape[0]
    order_key, length_key = jax.random.split(key)
    if settings.unit == "token":
        priority = jax.random.uniform(order_key, (time,))
    else:
        word = jnp.maximum(jnp.cumsum(starts | ~eligible) - 1, 0)  # the index of each token's word
        rank = jax.random.uniform(order_key, (time,))  # of each word
        if settings.unit == "span":
            rank = span_rank(length_key, rank, settings)
        priority = rank[word]
    # top_k breaks ties (pieces of one word) in favour of the earliest place
    best, places = jax.lax.top_k(jnp.where(eligible, -priority, -jnp.inf), most)
    real = (jnp.arange(most) < count) & (best > -jnp.inf)
    places = jnp.sort(jnp.where(real, places, time))
    return jnp.where(places < time, places, 0).astype(jnp.int32), places < time


def span_rank(key: Key[Array, ""], rank: Float[Array, "time"], settings: TokenMaskSettings) -> Float[Array, "time"]:
    """Return, for each word, the lowest rank of the spans that cover it; a span begins at every word and has its rank.

    Hiding words in this order hides whole spans, one after another. Starts are uniform; lengths are geometric with `span_p`,
    at most `span_maximum` (0.2 and 10: 3.8 words on average).
    """
    time = rank.shape[0]
    lengths = jnp.arange(1, settings.span_maximum + 1)
    weights = settings.span_p * (1 - settings.span_p) ** (lengths - 1)
    length = 1 + jax.random.choice(key, settings.span_maximum, (time,), p=weights / weights.sum())
    least = rank
    for k in range(1, min(settings.span_maximum, time)):  # spans that begin k words before and are longer than k
        begun = jnp.where(length > k, rank, jnp.inf)
        least = jnp.minimum(least, jnp.concatenate([jnp.full(k, jnp.inf), begun[:-k]]))
    return least


def mask_tokens(
    keys: Key[Array, "batch"],
    tokens: Int[Array, "batch time"],
    eligible: Bool[Array, "batch time"],
    length: Int[Array, "batch"],
    *,
    settings: TokenMaskSettings,
    mask_id: int,
    vocabulary: int,
    starts: Bool[Array, "batch time"] | None = None,
) -> Masked:
    """Hide max(1, round(ratio x length)) of the `eligible` tokens of each sequence, at most `settings.maximum`."""
    time = tokens.shape[1]
    n, counts = settings.places(time), jnp.array(settings.counts(time))
    starts = jnp.ones_like(eligible) if starts is None else starts

    def one(key, tokens, eligible, starts, length):
        places, real = sample_places(substream(key, "choose"), eligible, starts, counts[length], n, settings)
        u = jax.random.uniform(substream(key, "fate"), (n,))
        other = jax.random.randint(substream(key, "word"), (n,), 0, vocabulary)
        labels = tokens[places]
        new = jnp.where(u < settings.replace, mask_id, jnp.where(u < settings.replace + settings.random, other, labels))
        out = tokens.at[jnp.where(real, places, time)].set(new.astype(tokens.dtype), mode="drop")
        return Masked(out, places, labels, real.astype(jnp.float32))

    return jax.vmap(one)(keys, tokens, eligible, starts, length)
