"""Which tokens of a sequence are hidden, and what stands in their place. Pure functions of a key, exact in their counts."""

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
class MaskSettings:
    """`task.mask` (Devlin et al. 2019, section 3.1): of `ratio` of the tokens, 80 % become [MASK], 10 % random, 10 % stay.

    `unit`: "token", "word" (all pieces of a word together) or "span" (stretches of words, lengths geometric; SpanBERT, Joshi
    et al. 2020, section 3.1). `static`: an example is masked the same whenever it comes (see data.duplicates).
    """

    ratio: float = 0.15
    maximum: int | None = None  # hidden tokens a sequence (BERT: 20 at length 128)
    replace: float = 0.8  # share of the hidden tokens that become [MASK]
    random: float = 0.1  # share that becomes a random token of the whole vocabulary
    unit: str = "token"
    span_p: float = 0.2  # of the geometric distribution
    span_maximum: int = 10  # words
    static: bool = False

    def __post_init__(self):
        if not 0 < self.ratio < 1:
            raise UserError(f"ratio={self.ratio}: must lie in (0, 1)")
        if self.replace < 0 or self.random < 0 or self.replace + self.random > 1 + 1e-9:
            raise UserError(f"replace={self.replace} and random={self.random}: must not be negative, nor more than 1 together")
        if self.unit not in UNITS:
            raise UserError(f"unit={self.unit!r}: must be one of {', '.join(UNITS)}")
        if self.maximum is not None and self.maximum < 1:
            raise UserError(f"maximum={self.maximum}: must be at least 1")
        if not 0 < self.span_p <= 1 or self.span_maximum < 1:
            raise UserError(f"span_p={self.span_p} must lie in (0, 1] and span_maximum={self.span_maximum} be at least 1")

    def counts(self, longest: int) -> np.ndarray:
        """i32[longest + 1]: how many tokens of a sequence of each length, special ones included, are hidden."""
        n = np.maximum(1, np.round(np.arange(longest + 1) * self.ratio)).astype(np.int32)
        return n if self.maximum is None else np.minimum(n, self.maximum)

    def places(self, length: int) -> int:
        """Rows to keep for the hidden tokens of a sequence of at most `length` tokens."""
        return int(self.counts(length)[-1])


@dataclasses.dataclass(frozen=True)
class SpanMask(MaskSettings):
    """Spans of words, all replaced by the mask token (data2vec's text)."""

    ratio: float = 0.35
    unit: str = "span"
    replace: float = 1.0
    random: float = 0.0


class Masked(NamedTuple):
    """A batch's corruption: at most `hidden` places a sequence, in ascending order."""

    tokens: Int[Array, "batch time"]  # as the encoder sees them
    places: Int[Array, "batch hidden"]
    labels: Int[Array, "batch hidden"]  # the tokens that stood there
    real: Float[Array, "batch hidden"]  # 0 where a sequence has fewer hidden tokens than the longest could


def choose(
    key: Key[Array, ""],
    eligible: Bool[Array, "time"],
    starts: Bool[Array, "time"],
    count: Int[Array, ""],
    most: int,
    settings: MaskSettings,
) -> tuple[Int[Array, "most"], Bool[Array, "most"]]:
    """`count` of the eligible places of one sequence, or all of them if they are fewer, and which of the `most` rows are real.

    `starts`: where a word begins. One unit a sequence at most is cut, at its end, so that counts are exact.
    """
    time = eligible.shape[0]
    order_key, length_key = jax.random.split(key)
    if settings.unit == "token":
        priority = jax.random.uniform(order_key, (time,))
    else:
        word = jnp.maximum(jnp.cumsum(starts | ~eligible) - 1, 0)  # the number of the word each token is part of
        rank = jax.random.uniform(order_key, (time,))  # of a word, by its number
        if settings.unit == "span":
            rank = _spread(length_key, rank, settings)
        priority = rank[word]
    # of equal priority (pieces of one word), the first place comes first
    best, places = jax.lax.top_k(jnp.where(eligible, -priority, -jnp.inf), most)
    real = (jnp.arange(most) < count) & (best > -jnp.inf)
    places = jnp.sort(jnp.where(real, places, time))
    return jnp.where(places < time, places, 0).astype(jnp.int32), places < time


def _spread(key, rank, settings):
    """The rank of word w becomes the least of all spans that cover it: spans begin at every word, in the order of their ranks.

    Taking words by this rank until enough are hidden takes whole spans, drawn one after another: start uniform, length
    geometric with `span_p`, cut at `span_maximum` (for p = 0.2 and 10: mean 3.8 words).
    """
    time = rank.shape[0]
    lengths = jnp.arange(1, settings.span_maximum + 1)
    weights = settings.span_p * (1 - settings.span_p) ** (lengths - 1)
    length = 1 + jax.random.choice(key, settings.span_maximum, (time,), p=weights / weights.sum())
    least = rank
    for k in range(1, min(settings.span_maximum, time)):  # the span that began k words before, if it reaches as far
        begun = jnp.where(length > k, rank, jnp.inf)
        least = jnp.minimum(least, jnp.concatenate([jnp.full(k, jnp.inf), begun[:-k]]))
    return least


def mask_tokens(
    keys: Key[Array, "batch"],
    tokens: Int[Array, "batch time"],
    eligible: Bool[Array, "batch time"],
    length: Int[Array, "batch"],
    *,
    settings: MaskSettings,
    mask_id: int,
    vocabulary: int,
    starts: Bool[Array, "batch time"] | None = None,
) -> Masked:
    """Hide max(1, round(ratio x length)) tokens of each sequence, at most `settings.maximum`, out of the `eligible` ones."""
    time = tokens.shape[1]
    n, counts = settings.places(time), jnp.array(settings.counts(time))
    starts = jnp.ones_like(eligible) if starts is None else starts

    def one(key, tokens, eligible, starts, length):
        places, real = choose(substream(key, "choose"), eligible, starts, counts[length], n, settings)
        fate = jax.random.uniform(substream(key, "fate"), (n,))
        other = jax.random.randint(substream(key, "word"), (n,), 0, vocabulary)
        labels = tokens[places]
        new = jnp.where(fate < settings.replace, mask_id, jnp.where(fate < settings.replace + settings.random, other, labels))
        out = tokens.at[jnp.where(real, places, time)].set(new.astype(tokens.dtype), mode="drop")
        return Masked(out, places, labels, real.astype(jnp.float32))

    return jax.vmap(one)(keys, tokens, eligible, starts, length)
