"""Masked language modelling (BERT: Devlin et al. 2019)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import models
from ssl_jax.models import language
from ssl_jax.models.cross_entropy import cross_entropy, logits
from ssl_jax.models.language import Head, NextSentence, Pooler, Transformer
from ssl_jax.pretext.text_features import hidden_states, text_features, vocabulary_limits
from ssl_jax.pretext.token_masking import Masked, TokenMaskSettings, mask_tokens
from ssl_jax.randomness import example_keys, stream, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text


@dataclasses.dataclass(frozen=True)
class MaskedTokenSettings:
    """`task` of name "masked_token"."""

    mask: TokenMaskSettings = dataclasses.field(default_factory=TokenMaskSettings)
    next_sentence: bool = False  # with data.packing="pairs": classify whether B follows A


@dataclasses.dataclass(frozen=True)
class MaskedToken(Task):
    """A transformer encoder; only hidden tokens reach the output layer.

    The batch holds "tokens" i32[batch, time] with [CLS] and [SEP] in place; padded sequences add "segments" (0 = padding),
    sentence pairs "token_types" and "is_random" i32[batch].
    """

    name: ClassVar[str] = "masked_token"
    data: ClassVar[str] = "sequences"

    model: Transformer
    head: Head
    settings: MaskedTokenSettings
    info: DataInfo

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "MaskedToken":
        from ssl_jax.errors import UserError

        settings = configs.read(MaskedTokenSettings, config.get("task"), "task")
        model = models.build("tokens", config, info)
        shape = model.config
        info.tokenizer.require("mask")
        if settings.next_sentence and "is_random" not in info.shapes:
            raise UserError('task.next_sentence=True: needs data.packing="pairs"')
        if settings.next_sentence and not (shape.pooler and shape.token_types >= 2):
            raise UserError("task.next_sentence=True: needs model.pooler=True and model.token_types=2")
        if settings.mask.unit != "token":
            _ = info.tokenizer.continues  # raises UserError if the vocabulary does not mark where words begin
        return cls(model, Head.of(model), settings, info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        params = language.init(self.model, self.head, key, batch["tokens"][:1])
        hidden = jnp.zeros((1, 1, self.model.config.width), self.model.dtype)
        if self.settings.next_sentence:
            params["next_sentence"] = self._next_sentence.init(substream(key, "next_sentence"), hidden)["params"]
        elif self.model.config.pooler:  # a published encoder's own
            params["pooler"] = self._pooler.init(substream(key, "pooler"), hidden)["params"]
        return params

    @property
    def _next_sentence(self) -> NextSentence:
        return NextSentence(self.model.config, self.model.dtype)

    @property
    def _pooler(self) -> Pooler:
        return Pooler(self.model.config, self.model.dtype)

    def masked(self, batch: Batch, key: Key[Array, ""]) -> Masked:
        """Mask the batch under `key`; a static mask depends on the example alone."""
        tokens, tokenizer = batch["tokens"], self.info.tokenizer
        special = jnp.zeros(tokenizer.size, bool).at[jnp.array(special_ids(tokenizer), jnp.int32)].set(True)
        real = jnp.ones(tokens.shape, bool) if "segments" not in batch else batch["segments"] > 0
        if self.settings.mask.static:
            keys = jax.vmap(lambda i: jax.random.fold_in(stream(0, "static mask"), i))(batch["index"])
        else:
            keys = substream(example_keys(key, batch["position"]), "mask")
        starts = None
        if self.settings.mask.unit != "token":
            starts = ~jnp.array(tokenizer.continues)[tokens]
        return mask_tokens(
            keys, tokens, real & ~special[tokens], jnp.sum(real, axis=1), settings=self.settings.mask,
            mask_id=tokenizer.mask_id, vocabulary=tokenizer.size, starts=starts,
        )  # fmt: skip

    def encode(self, params: Params, batch: Batch, tokens: Int[Array, "batch time"], keys=None):
        return hidden_states(self.model, params, {**batch, "tokens": tokens}, keys)[0]

    def output(self, params: Params, hidden: Float[Array, "*batch dim"]):
        """Return features, weight and bias of the output layer (`models.language.Head`)."""
        return self.head.apply({"params": params.get("head", {})}, hidden, params["transformer"]["token_embedding"])

    def prepare(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Batch:
        """Add "hidden_per_example" f32[batch], the mean number of hidden tokens over the global batch, for a loss that adds
        a mean over examples (next sentence) to one over hidden tokens."""
        if not self.settings.next_sentence:
            return batch
        hidden = jnp.sum(self.masked(batch, key).real, axis=1)
        return {**batch, "hidden_per_example": jnp.full_like(hidden, jnp.mean(hidden))}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean cross-entropy over hidden tokens, plus that of next-sentence prediction if enabled."""
        masked = self.masked(batch, key)
        keys = substream(example_keys(key, batch["position"]), "dropout") if train else None
        hidden = self.encode(params, batch, masked.tokens, keys)
        picked = jnp.take_along_axis(hidden, masked.places[..., None], axis=1)
        features, weight, bias = self.output(params, picked)
        loss, metrics = cross_entropy(features, weight, masked.labels, bias, label_weights=masked.real)
        if self.settings.next_sentence:
            if "hidden_per_example" in batch:  # a piece of the global batch: weight both terms by examples
                rows = masked.real.shape[0]
                share = metrics.pop("weight") / (rows * jnp.mean(batch["hidden_per_example"]))
                loss, metrics = loss * share, {name: value * share for name, value in metrics.items()} | {"weight": rows}
            scores = self._next_sentence.apply({"params": params["next_sentence"]}, hidden)
            log_p = jax.nn.log_softmax(scores.astype(jnp.float32))
            extra = -jnp.mean(jnp.take_along_axis(log_p, batch["is_random"][:, None], axis=1))
            accuracy = jnp.mean(jnp.argmax(scores, axis=-1) == batch["is_random"])
            metrics |= {"next_sentence_loss": extra, "next_sentence_accuracy": accuracy}
            loss = loss + extra
        return loss, metrics

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "cls", "mean" (without padding), "last", "tokens", "block00/mean", ..., and "pooled" if there is a pooler."""
        out = text_features(self.model, params, batch)
        if self.settings.next_sentence:
            pooler = self._next_sentence.apply({"params": params["next_sentence"]}, out["tokens"], method="pool")
            out["pooled"] = pooler.astype(jnp.float32)
        elif "pooler" in params:
            out["pooled"] = self._pooler.apply({"params": params["pooler"]}, out["tokens"]).astype(jnp.float32)
        return out

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "logits" f32[batch, time, vocabulary] of the tokens as given, without masking, and for sentence pairs
        "next_sentence" f32[batch, 2]. The batch may hold "attention_mask" and "token_type_ids"."""
        hidden = self.encode(params, batch, batch["tokens"])
        out = {"logits": logits(*self.output(params, hidden))[..., : self.head.vocabulary]}
        if self.settings.next_sentence:
            out["next_sentence"] = self._next_sentence.apply({"params": params["next_sentence"]}, hidden)
        return out

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        """Return sequences with hidden tokens, and the model's most likely token in place of each."""
        masked = jax.jit(self.masked)(batch, key)
        hidden = jax.jit(self.encode)(params, batch, masked.tokens)
        guess = np.asarray(jnp.argmax(logits(*self.output(params, hidden))[..., : self.head.vocabulary], axis=-1))
        tokenizer, lines = self.info.tokenizer, []
        for row in range(min(4, guess.shape[0])):
            truth, shown = np.asarray(batch["tokens"][row]), np.asarray(masked.tokens[row])
            places = np.asarray(masked.places[row])[np.asarray(masked.real[row]) > 0]
            filled = truth.copy()
            filled[places] = guess[row, places]
            for caption, ids in (("given", shown), ("filled", filled), ("text", truth)):
                lines.append(f"{caption}: {tokenizer.decode(ids)}")
        return {"filled_masks": Text(tuple(lines))}

    def index_limits(self) -> dict[str, int]:
        """Return the number of rows of each table that the batch's integers index."""
        return vocabulary_limits(self.model) | ({"is_random": 2} if self.settings.next_sentence else {})

    def flops(self) -> float:
        """Return 3 x the forward pass of one full-length sequence, with the output layer on its hidden tokens only."""
        c, time = self.model.config, self.info.shapes["tokens"].shape[0]
        return 3 * (c.flops_forward(time) + c.flops_head(self.settings.mask.places(time), self.head.vocabulary))


def special_ids(tokenizer) -> tuple[int, ...]:
    """Return the tokens that are never hidden: [CLS], [SEP] and [PAD]."""
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    return tuple(i for i in ids if i is not None)


def masked_token_baselines(counts: np.ndarray, test_counts: np.ndarray | None = None) -> dict[str, float]:
    """Return the metrics of a unigram model on hidden tokens.

    `counts`: occurrences of each token in the training corpus; `test_counts`: in the evaluated corpus (default: the same).
    "unigram_entropy": cross-entropy in nats of the unigram distribution (add-one smoothed); "most_frequent_accuracy".
    """
    scored = counts if test_counts is None else test_counts
    p = (counts + 1) / (counts.sum() + len(counts))
    share = scored / scored.sum()
    return {
        "unigram_entropy": float(-(share * np.log(p)).sum()),
        "most_frequent_accuracy": float(share[int(np.argmax(counts))]),
    }
