"""An encoder-decoder with cross-attention (Vaswani et al. 2017), and a prefix language model.

Encoder and decoder may be initialised from different runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.models.cross_entropy import logits
from ssl_jax.models.language import Head, LanguageSettings, Transformer
from ssl_jax.models.layers import Keys
from ssl_jax.randomness import substream
from ssl_jax.task import DataInfo

CROSS = r"stack/block\d+/cross(_norm|_scale)?(/.*)?"  # parameters that a decoder has and a language model has not


@dataclasses.dataclass(frozen=True)
class EncoderDecoderSettings:
    """`model` of name "encoder_decoder"."""

    encoder: LanguageSettings = dataclasses.field(default_factory=LanguageSettings)
    decoder: LanguageSettings | None = None  # default: the encoder's
    shared_embedding: bool = True  # one table of tokens for both sides and the output layer

    @property
    def decoder_or_same(self) -> LanguageSettings:
        return self.decoder or self.encoder


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """Parameters: "encoder", "decoder" and, if the output layer has parameters of its own, "head".

    With `shared_embedding`, the decoder uses the encoder's "token_embedding".
    """

    encoder: Transformer
    decoder: Transformer
    head: Head
    shared_embedding: bool

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        tokens = jnp.zeros((1, 1), jnp.int32)
        encoder = self.encoder.init(substream(key, "encoder"), tokens)["params"]
        context = jnp.zeros((1, 1, self.encoder.config.width), self.encoder.dtype)
        decoder = dict(self.decoder.init(substream(key, "decoder"), tokens, context=context)["params"])
        hidden = jnp.zeros((1, 1, self.decoder.config.width), self.decoder.dtype)
        head = self.head.init(substream(key, "head"), hidden, decoder["token_embedding"]).get("params", {})
        if self.shared_embedding:
            del decoder["token_embedding"]
        return {"encoder": encoder, "decoder": decoder} | ({"head": head} if head else {})

    def decoder_params(self, params: Any) -> dict[str, Any]:
        shared = {"token_embedding": params["encoder"]["token_embedding"]} if self.shared_embedding else {}
        return {**params["decoder"], **shared}

    def _encode(self, params: Any, batch: Any, keys: Keys = None) -> tuple[Float[Array, "batch source dim"], dict]:
        keys = None if keys is None else substream(keys, "encoder")
        return self.encoder.apply(
            {"params": params["encoder"]}, batch["source"], segments=batch["source_segments"], keys=keys
        )  # fmt: skip

    def hidden(self, params: Any, batch: Any, keys: Keys = None) -> Float[Array, "batch target width"]:
        """Return the hidden states that predict target[t + 1] from the source and target[: t + 1]."""
        context, _ = self._encode(params, batch, keys)
        keys = None if keys is None else substream(keys, "decoder")
        return self.decoder.apply(
            {"params": self.decoder_params(params)}, batch["target"][:, :-1], context=context,
            context_segments=batch["source_segments"], keys=keys,
        )[0]  # fmt: skip

    def source_states(self, params: Any, batch: Any) -> tuple[Array, dict]:
        """Return the encoder's last hidden states and intermediates."""
        return self._encode(params, batch)

    def begin(self, params: Any, batch: Any, length: int, beams: int) -> tuple[list, Callable, int]:
        """Return what `downstream.decoding` needs to decode `length` tokens: (caches, step, position of the first token)."""
        context, _ = self._encode(params, batch)
        rows = len(context)
        context, segments = (jnp.repeat(x, beams, axis=0) for x in (context, batch["source_segments"]))
        decoder = self.decoder_params(params)

        def step(tokens, index, caches):
            hidden, inner = self.decoder.apply(
                {"params": decoder}, tokens[:, None], context=context, context_segments=segments, caches=caches,
                positions=jnp.full((1, 1), index, jnp.int32),
            )  # fmt: skip
            return self.logits(params, hidden[:, 0]), inner["caches"]

        return self.decoder.empty_caches(rows, length), step, 0

    def output(self, params: Any, hidden: Float[Array, "*batch width"]):
        """Return features, weight and bias of the output layer (`models.language.Head`)."""
        return self.head.apply({"params": params.get("head", {})}, hidden, self.decoder_params(params)["token_embedding"])

    def logits(self, params: Any, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        return logits(*self.output(params, hidden))[..., : self.head.vocabulary]

    def flops_forward(self, source: int, target: int) -> float:
        """Return the matmul FLOPs of one pair's forward pass; the decoder's self-attention counts half."""
        d = self.decoder.config
        cross = d.flops_forward(target, kv_tokens=source, cross=True) - d.flops_forward(target, kv_tokens=source)
        own = d.flops_forward(target, causal=True) + d.flops_head(target, self.head.vocabulary)
        return self.encoder.config.flops_forward(source) + own + cross


@dataclasses.dataclass(frozen=True)
class PrefixDecoder:
    """A prefix language model: one transformer, bidirectional on the source and causal on the target that follows it (Raffel
    et al. 2020, section 3.2.1). Parameters: "transformer" and, if the output layer has parameters of its own, "head".

    The source is right-aligned, so that no padding lies between source and target.
    """

    transformer: Transformer
    head: Head

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        params = self.transformer.init(substream(key, "transformer"), jnp.zeros((1, 1), jnp.int32))["params"]
        hidden = jnp.zeros((1, 1, self.transformer.config.width), self.transformer.dtype)
        head = self.head.init(substream(key, "head"), hidden, params["token_embedding"]).get("params", {})
        return {"transformer": params} | ({"head": head} if head else {})

    def _source(self, batch: Any) -> tuple[Array, Array, Array]:
        """Return right-aligned tokens and segments, and each row's prefix length."""
        tokens, segments = batch["source"], batch["source_segments"]
        count = tokens.shape[1]
        move = jax.vmap(lambda row, shift: jnp.roll(row, shift))
        shift = count - jnp.sum(segments > 0, axis=1)
        return move(tokens, shift), move(segments, shift), jnp.full(len(tokens), count, jnp.int32)

    def hidden(self, params: Any, batch: Any, keys: Keys = None) -> Float[Array, "batch target width"]:
        """Return the hidden states that predict target[t + 1] from the source and target[: t + 1]."""
        tokens, segments, prefix = self._source(batch)
        together = jnp.concatenate([tokens, batch["target"][:, :-1]], axis=1)
        segments = jnp.concatenate([segments, batch["target_segments"][:, :-1]], axis=1)
        hidden, _ = self.transformer.apply(
            {"params": params["transformer"]}, together, segments=segments, prefix=prefix, keys=keys
        )
        return hidden[:, tokens.shape[1] :]

    def source_states(self, params: Any, batch: Any) -> tuple[Array, dict]:
        """Return hidden states and intermediates of the source read as a prefix, without moving its tokens."""
        tokens, segments, prefix = batch["source"], batch["source_segments"], jnp.full(len(batch["source"]), 2**30, jnp.int32)
        return self.transformer.apply({"params": params["transformer"]}, tokens, segments=segments, prefix=prefix)

    def begin(self, params: Any, batch: Any, length: int, beams: int) -> tuple[list, Callable, int]:
        """Return what `downstream.decoding` needs to decode `length` tokens: (caches, step, position of the first token)."""
        tokens, segments, prefix = self._source(batch)
        rows, count = tokens.shape
        empty = jnp.zeros((rows, count + length), jnp.int32)  # the caches also store segments, to mask the source's padding
        caches = [cache | {"segments": empty} for cache in self.transformer.empty_caches(rows, count + length)]
        model = {"params": params["transformer"]}
        _, inner = self.transformer.apply(model, tokens, segments=segments, prefix=prefix, caches=caches)
        prefix = jnp.repeat(prefix, beams, axis=0)

        def step(tokens, index, caches):
            hidden, inner = self.transformer.apply(
                model, tokens[:, None], segments=jnp.ones((len(tokens), 1), jnp.int32), prefix=prefix, caches=caches,
                positions=jnp.full((1, 1), index, jnp.int32),
            )  # fmt: skip
            return self.logits(params, hidden[:, 0]), inner["caches"]

        return inner["caches"], step, count

    def output(self, params: Any, hidden: Float[Array, "*batch width"]):
        return self.head.apply({"params": params.get("head", {})}, hidden, params["transformer"]["token_embedding"])

    def logits(self, params: Any, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        return logits(*self.output(params, hidden))[..., : self.head.vocabulary]

    def flops_forward(self, source: int, target: int) -> float:
        """Return the matmul FLOPs of one pair's forward pass; the target's self-attention counts half."""
        c = self.transformer.config
        unseen = c.flops_forward(target) - c.flops_forward(target, causal=True)
        return c.flops_forward(source + target) - unseen + c.flops_head(target, self.head.vocabulary)


def build(section: Any, info: DataInfo, dtype: Any = jnp.float32, path: str = "model") -> EncoderDecoder:
    """Return the encoder-decoder of a config section, for the "source" and "target" texts of `info`."""
    config, vocabulary = configs.read(EncoderDecoderSettings, section, path), info.tokenizer.size
    source, target = _lengths(info)
    decoder = config.decoder_or_same
    _check_context(config.encoder, source, f"{path}.encoder")
    _check_context(decoder, target, f"{path}.decoder")
    return EncoderDecoder(
        Transformer(config.encoder, vocabulary, dtype=dtype, context_length=source),
        Transformer(decoder, vocabulary, causal=True, dtype=dtype, context_length=target, cross=True),
        Head(decoder, vocabulary, dtype),
        config.shared_embedding,
    )


def build_prefix_decoder(section: Any, info: DataInfo, dtype: Any = jnp.float32, path: str = "model") -> PrefixDecoder:
    """Return the prefix language model of a config section, for the "source" and "target" texts of `info`."""
    config, vocabulary, length = configs.read(LanguageSettings, section, path), info.tokenizer.size, sum(_lengths(info))
    _check_context(config, length, path)
    model = Transformer(config, vocabulary, causal=True, dtype=dtype, context_length=length)
    return PrefixDecoder(model, Head(config, vocabulary, dtype))


def _lengths(info: DataInfo) -> tuple[int, int]:
    """Return the lengths in tokens of the longest source and of the longest target without its last token."""
    return info.shapes["source"].shape[0], info.shapes["target"].shape[0] - 1


def _check_context(config: LanguageSettings, needed: int, path: str) -> None:
    if config.context_length is not None and config.context_length < needed:
        raise UserError(
            f"{path}.context_length={config.context_length}: must be at least {needed}, the length of the longest text"
        )
