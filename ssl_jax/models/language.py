"""Transformers over tokens: one module with settings for GPT-2, LLaMA, BERT, RoBERTa, ModernBERT and text towers."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import config as config_module
from ssl_jax import partition
from ssl_jax.errors import UserError
from ssl_jax.models.dense import Dense
from ssl_jax.models.layers import ACTIVATIONS, Keys, Norm, Stack, TransformerSettings, dropout, norm_of
from ssl_jax.randomness import substream
from ssl_jax.task import DataInfo

POSITIONS = ("learned", "rope", "sincos", "none")


@dataclasses.dataclass(frozen=True)
class LanguageSettings(TransformerSettings):
    """The defaults are GPT-2's (Radford et al. 2019; initialisation of section 2.3)."""

    norm_eps: float = 1e-5
    init: str = "gpt2"
    context_length: int | None = None  # the longest sequence; default: the data's
    positions: str = "learned"  # "learned", "rope", "sincos" (sinusoidal with a learned scale; Hua et al. 2022) or "none"
    position_offset: int = 0  # RoBERTa: 2, its padding id + 1; padding takes no position (`places`)
    token_types: int = 0  # number of token types (BERT: 2, for first and second sentence)
    embedding_norm: bool = False  # a norm after the embedding (BERT, ModernBERT)
    final_norm: bool = True  # a norm after the last block; False for post-norm blocks, which end with a norm
    tied: bool = True  # the output layer is the transposed embedding
    output_bias: bool = False
    head_transform: bool = False  # BERT: dense, activation and norm before the output layer
    pooler: bool = False  # BERT: dense and tanh over [CLS], for next-sentence prediction
    vocabulary: int | None = None  # number of tokens of embedding and logits; default: the tokenizer's
    vocabulary_multiple: int = 1  # pad the embedding to a multiple (nanoGPT: 64)

    def __post_init__(self):
        if self.positions not in POSITIONS:
            raise UserError(f"positions={self.positions!r}: must be one of {', '.join(POSITIONS)}")
        if self.positions == "rope" and self.rope_theta is None:
            object.__setattr__(self, "rope_theta", 10_000.0)
        if self.context_length is not None and self.context_length < 1:
            raise UserError(f"context_length={self.context_length}: must be at least 1")
        for name in ("position_offset", "token_types"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("vocabulary", "vocabulary_multiple"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        super().__post_init__()

    def padded(self, vocabulary: int) -> int:
        """Return the number of rows of the embedding for `vocabulary` tokens."""
        return -(-vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple

    def tokens(self, tokenizer_size: int) -> int:
        """Return the number of tokens: `vocabulary`, which may exceed the tokenizer's, or by default the tokenizer's."""
        if self.vocabulary is not None and self.vocabulary < tokenizer_size:
            raise UserError(f"vocabulary={self.vocabulary}: must be at least {tokenizer_size}, the size of the tokenizer")
        return self.vocabulary or tokenizer_size

    def flops_head(self, tokens: float, vocabulary: int) -> float:
        """Return the matmul FLOPs of the output layer's forward pass on `tokens` tokens."""
        transform = 2 * tokens * self.width**2 if self.head_transform else 0
        return transform + 2 * tokens * self.width * self.padded(vocabulary)


def sinusoids(positions: Int[Array, "batch time"], width: int) -> Float[Array, "batch time {width}"]:
    """Return fixed sinusoidal positions with sine and cosine interleaved (Vaswani et al. 2017, section 3.5)."""
    frequency = jnp.exp(-math.log(10_000.0) * jnp.arange(0, width, 2) / width)
    angle = positions[..., None] * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, -1)[..., :width]


def places(
    tokens: Int[Array, "batch time"], positions: Int[Array, "#batch time"] | None, offset: int
) -> Int[Array, "#batch time"]:
    """Return rows of the table of learned positions: `positions` (default 0, 1, 2, ...) + `offset`.

    With an offset and default positions, padding is not counted, as in RoBERTa: its id and its row are offset - 1 (Liu et al.
    2019, fairseq's `make_positions`).
    """
    if positions is not None:
        return positions + offset
    if not offset:
        return jnp.arange(tokens.shape[1])[None]
    real = tokens != offset - 1
    return jnp.where(real, jnp.cumsum(real, axis=1), 0) + offset - 1


class Transformer(nn.Module):
    """Map token ids to hidden states, without an output layer. `causal` makes it a decoder, `cross` adds cross-attention.

    Return the normalised hidden states [batch, time, width] and the intermediates: "embedding", "block00", ... and, if `caches`
    are given, "caches". `positions` default to 0, 1, 2, ...; tokens attend only to tokens with the same number in `segments`
    (packed documents; 0 = padding); `prefix`, `context` and `context_segments` are passed to the stack.
    """

    config: LanguageSettings
    vocabulary: int
    causal: bool = False
    dtype: Any = jnp.float32
    context_length: int = 0  # if config.context_length is None
    cross: bool = False

    @property
    def context(self) -> int:
        """Return the length of the longest sequence."""
        return self.config.context_length or self.context_length

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        *,
        keys: Keys = None,
        positions: Int[Array, "#batch time"] | None = None,
        segments: Int[Array, "batch time"] | None = None,
        token_types: Int[Array, "batch time"] | None = None,
        caches: list | None = None,
        **options,
    ) -> tuple[Float[Array, "batch time dim"], dict]:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        table = self.get_variable("params", "token_embedding")
        if table is None or table.ndim == 2:  # not the devices' `partition.copies`
            table = self.param("token_embedding", init, (c.padded(self.vocabulary), c.width))
        x = partition.take(table, tokens)
        rows = places(tokens, positions, c.position_offset)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        if c.positions == "learned":
            if tokens.shape[1] > self.context:
                raise UserError(
                    f"tokens: a sequence of {tokens.shape[1]} is longer than the model's context of {self.context}; cut it"
                )
            table = self.param("position_embedding", init, (self.context + c.position_offset, c.width))
            x = x + jnp.take(table, rows, axis=0)
        elif c.positions == "sincos":
            scale = self.param("position_scale", nn.initializers.constant(c.width**-0.5), ())
            x = x + scale * sinusoids(positions, c.width)
        if c.token_types:
            kinds = self.param("type_embedding", init, (c.token_types, c.width))
            one = token_types is None or c.token_types == 1  # a table with one row (RoBERTa's) is added to all tokens
            x = x + (kinds[0] if one else jnp.take(kinds, token_types, axis=0))
        x = x.astype(self.dtype)
        if c.embedding_norm:
            x = norm_of(c, self.dtype, "embedding_norm")(x)
        x = dropout(x, c.dropout, keys, "embedding")
        embedding = x
        stack = Stack(c, self.causal, self.cross, self.dtype, name="stack")
        x, intermediates = stack(x, keys=keys, positions=positions, segments=segments, caches=caches, **options)
        if c.final_norm:
            x = norm_of(c, self.dtype, "final_norm")(x)
        return x, {"embedding": embedding, **intermediates}

    def empty_caches(self, batch: int, length: int) -> list[dict[str, Array]]:
        """Return empty key-value caches for `length` tokens, one per block."""
        c = self.config
        shape = (batch, c.kv_heads or c.heads, length, c.width_of_head)
        empty = lambda: {
            "key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype), "length": jnp.zeros((), jnp.int32)
        }  # fmt: skip
        return [empty() for _ in range(c.depth)]


def build(
    section: Any,
    info: DataInfo,
    dtype: Any = jnp.float32,
    path: str = "model",
    *,
    causal: bool = False,
    length: int | None = None,
) -> Transformer:
    """Return the transformer of a config section for the tokens of `info`, in sequences of `length` (default: the data's).

    Raise UserError if the settings do not fit the data or the tokenizer.
    """
    if "tokens" not in info.shapes or info.tokenizer is None:
        raise UserError("data.train: contains no text, which this task needs; name a text source")
    config = config_module.read(LanguageSettings, section, path)
    pad, length = info.tokenizer.pad_id, length or info.shapes["tokens"].shape[0]
    if config.position_offset and pad != config.position_offset - 1:
        raise UserError(
            f"{path}.position_offset={config.position_offset}: positions start after the padding token's id, which must "
            f"be {config.position_offset - 1}; the tokenizer's is {pad}"
        )
    if config.context_length is None:
        config = dataclasses.replace(config, context_length=length)
    elif config.context_length < length:
        raise UserError(
            f"{path}.context_length={config.context_length}: must be at least {length}, the length of the data's sequences"
        )
    return Transformer(config, config.tokens(info.tokenizer.size), causal, dtype)


class Head(nn.Module):
    """The output layer as the features, weight and bias that the cross-entropy takes.

    Logits are `features @ weight.T + bias`; `models.cross_entropy` computes the loss without materializing all of them.
    """

    config: LanguageSettings
    vocabulary: int
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, model: Transformer) -> "Head":
        return cls(model.config, model.vocabulary, model.dtype)

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "*batch dim"], embedding: Float[Array, "*devices vocabulary dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*devices vocabulary dim"], Float[Array, "vocabulary"] | None]:
        c = self.config
        x = hidden
        if c.head_transform:
            x = Dense(c.width, use_bias=c.bias, kernel_init=c.dense_init(), dtype=self.dtype, name="transform")(x)
            x = Norm(c.norm, c.norm_eps, c.norm_bias, self.dtype, name="transform_norm")(ACTIVATIONS[c.activation](x))
        rows = c.padded(self.vocabulary)
        weight = embedding if c.tied else self.param("weight", nn.initializers.normal(c.init_std), (rows, c.width))
        bias = self.param("bias", nn.initializers.zeros, (rows,)) if c.output_bias else None
        return x, weight, bias


def init(model: Transformer, head: Head, key: Key[Array, ""], tokens: Int[Array, "batch time"]) -> dict[str, Any]:
    """Return the parameters of a transformer, "transformer", and of its output layer, "head", if that has any of its own."""
    transformer = model.init(substream(key, "transformer"), tokens)["params"]
    hidden = jnp.zeros((1, 1, model.config.width), model.dtype)
    top = head.init(substream(key, "head"), hidden, transformer["token_embedding"]).get("params", {})
    return {"transformer": transformer} | ({"head": top} if top else {})


class Pooler(nn.Module):
    """tanh(dense([CLS])) (Devlin et al. 2019)."""

    config: LanguageSettings
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "batch time dim"]) -> Float[Array, "batch dim"]:
        c = self.config
        return jnp.tanh(Dense(c.width, kernel_init=c.dense_init(), dtype=self.dtype, name="dense")(hidden[:, 0]))


class NextSentence(nn.Module):
    """BERT's pooler and two logits: 0, B follows A; 1, B is random."""

    config: LanguageSettings
    dtype: Any = jnp.float32

    def setup(self):
        self.pooler = Pooler(self.config, self.dtype)
        self.classifier = Dense(2, kernel_init=self.config.dense_init(), dtype=self.dtype)

    def __call__(self, hidden: Float[Array, "batch time dim"]) -> Float[Array, "batch 2"]:
        return self.classifier(self.pooler(hidden))

    def pool(self, hidden: Float[Array, "batch time dim"]) -> Float[Array, "batch dim"]:
        return self.pooler(hidden)


def pooled(
    hidden: Float[Array, "batch time dim"], segments: Int[Array, "batch time"] | None = None
) -> dict[str, Float[Array, "batch dim"]]:
    """Return sentence embeddings f32: "cls" (the first token), "mean" and "last" (both without padding)."""
    x = hidden.astype(jnp.float32)
    if segments is None:
        return {"cls": x[:, 0], "mean": jnp.mean(x, axis=1), "last": x[:, -1]}
    real = segments > 0
    weight = real / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    last = jnp.max(jnp.where(real, jnp.arange(x.shape[1]), 0), axis=1)
    return {
        "cls": x[:, 0],
        "mean": jnp.einsum("btd,bt->bd", x, weight),
        "last": jax.vmap(lambda row, i: row[i])(x, last),
    }
