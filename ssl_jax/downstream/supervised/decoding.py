"""Greedy and beam search over any model that continues a sequence, each one jitted loop.

A model is a function `step(tokens i32[rows], index i32[], cache) -> (logits f32[rows, vocabulary], cache)`: it is given the
tokens at place `index` of every row. `cache` is a pytree whose arrays of at least one axis begin with the rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax.errors import UserError

Step = Callable[[Array, Array, Any], tuple[Array, Any]]
NEVER = -1e9  # a log probability that loses against every real one and stays finite in sums


@dataclasses.dataclass(frozen=True)
class Search:
    """How an output is chosen: `beams` = 1 is greedy. `length_penalty` is alpha of Wu et al. 2016, equation 14."""

    beams: int = 4
    length_penalty: float = 0.6

    def __post_init__(self):
        if self.beams < 1:
            raise UserError(f"beams={self.beams}: must be at least 1; 1 is greedy")
        if self.length_penalty < 0:
            raise UserError(f"length_penalty={self.length_penalty}: must not be negative")

    def __call__(
        self, step: Step, cache: Any, first: Int[Array, "batch"], *, length: int, eos: int, start: int | Array = 0
    ) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
        """Continue `first` by at most `length` tokens: (tokens, ended by `eos` and filled with it; their log probability)."""
        if self.beams == 1:
            return greedy(step, cache, first, length=length, eos=eos, start=start)
        sequences, scores = beam_search(
            step, cache, first, length=length, eos=eos, start=start, beams=self.beams, length_penalty=self.length_penalty
        )
        return sequences[:, 0], scores[:, 0]


def greedy(
    step: Step, cache: Any, first: Int[Array, "batch"], *, length: int, eos: int, start: int | Array = 0
) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
    """The likeliest token each time, until `eos`. Returns tokens i32[batch, length] and summed log probabilities."""
    batch = first.shape[0]

    def going(state):
        i, _, _, done, _, _ = state
        return (i < length) & ~jnp.all(done)

    def advance(state):
        i, last, tokens, done, score, cache = state
        logits, cache = step(last, start + i, cache)
        logp = jax.nn.log_softmax(logits.astype(jnp.float32))
        token = jnp.where(done, eos, jnp.argmax(logp, axis=-1).astype(jnp.int32))
        score = score + jnp.where(done, 0.0, jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0])
        tokens = tokens.at[:, i].set(token)
        return i + 1, token, tokens, done | (token == eos), score, cache

    tokens = jnp.full((batch, length), eos, jnp.int32)
    state = (jnp.int32(0), first.astype(jnp.int32), tokens, jnp.zeros(batch, bool), jnp.zeros(batch, jnp.float32), cache)
    _, _, tokens, _, score, _ = jax.lax.while_loop(going, advance, state)
    return tokens, score


def length_norm(length: int | Array, alpha: float) -> float | Array:
    """((5 + length) / 6)^alpha (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    step: Step, cache: Any, first: Int[Array, "batch"], *, length: int, eos: int, start: int | Array = 0, beams: int = 4,
    length_penalty: float = 0.6,
) -> tuple[Int[Array, "batch beams length"], Float[Array, "batch beams"]]:  # fmt: skip
    """The `beams` best continuations of each row, best first, and their log probability over its length norm.

    `cache` has one row an example (of the prefix read so far); it is repeated here. A hypothesis ends with `eos` (counted
    in its length). The search stops when no open hypothesis can still beat the worst of the `beams` ended ones. Where
    `length` is reached first, open hypotheses are taken as they are.
    """
    batch = first.shape[0]

    def repeat(x):
        return jnp.repeat(x, beams, axis=0) if jnp.ndim(x) else x

    def pick(x, beam):  # rows [batch * beams, ...] -> the rows of the chosen beams
        if not jnp.ndim(x):
            return x
        rows = (jnp.arange(batch)[:, None] * beams + beam).reshape(-1)
        return x[rows]

    def of_beam(x, beam):  # [batch, n, ...] by i32[batch, m]
        return jnp.take_along_axis(x, beam.reshape(*beam.shape, *[1] * (x.ndim - 2)), axis=1)

    def going(state):
        i, _, _, open_scores, _, ended_scores, _ = state
        # log probabilities only fall, and dividing by the largest norm is the most an open hypothesis can hope for
        hope = jnp.max(open_scores, axis=1) / length_norm(length, length_penalty)
        return (i < length) & jnp.any(hope > jnp.min(ended_scores, axis=1))

    def advance(state):
        i, last, open_tokens, open_scores, ended_tokens, ended_scores, cache = state
        logits, cache = step(last.reshape(-1), start + i, cache)
        logp = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, -1)
        vocabulary = logp.shape[-1]
        total = (open_scores[..., None] + logp).reshape(batch, -1)
        # twice as many candidates as beams: even if each open hypothesis ends here, `beams` others stay open
        scores, flat = jax.lax.top_k(total, min(2 * beams, total.shape[-1]))
        beam, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        tokens = of_beam(open_tokens, beam).at[..., i].set(token)
        ends = token == eos

        finished = jnp.where(ends, scores / length_norm(i + 1, length_penalty), NEVER)
        ended_scores, kept = jax.lax.top_k(jnp.concatenate([ended_scores, finished], axis=1), beams)
        ended_tokens = of_beam(jnp.concatenate([ended_tokens, tokens], axis=1), kept)

        open_scores, kept = jax.lax.top_k(jnp.where(ends, NEVER, scores), beams)
        open_tokens, last = of_beam(tokens, kept), of_beam(token, kept)
        cache = jax.tree.map(lambda x: pick(x, of_beam(beam, kept)), cache)
        return i + 1, last, open_tokens, open_scores, ended_tokens, ended_scores, cache

    blank = jnp.full((batch, beams, length), eos, jnp.int32)
    alone = jnp.full((batch, beams), NEVER, jnp.float32).at[:, 0].set(0.0)  # at first all beams are the same one
    last = jnp.repeat(first.astype(jnp.int32)[:, None], beams, axis=1)
    state = (jnp.int32(0), last, blank, alone, blank, jnp.full((batch, beams), NEVER, jnp.float32), jax.tree.map(repeat, cache))
    _, _, open_tokens, open_scores, ended_tokens, ended_scores, _ = jax.lax.while_loop(going, advance, state)
    # what is open at full length competes with what has ended; earlier stops leave nothing open that could win
    reached = jnp.where(open_scores > NEVER / 2, open_scores / length_norm(length, length_penalty), NEVER)
    scores, kept = jax.lax.top_k(jnp.concatenate([ended_scores, reached], axis=1), beams)
    return of_beam(jnp.concatenate([ended_tokens, open_tokens], axis=1), kept), scores
