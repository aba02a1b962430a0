"""Translation of parallel text: an encoder-decoder, or one decoder as a prefix language model; measured by BLEU."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.data.text.supervised import sentence_ends
from ssl_jax.downstream.supervised.decoding import Search
from ssl_jax.downstream.supervised.text_encoder import label_scores
from ssl_jax.errors import UserError
from ssl_jax.models.encoder_decoder import EncoderDecoder, PrefixDecoder
from ssl_jax.pretext.text_features import representations
from ssl_jax.randomness import example_keys
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text


@dataclasses.dataclass(frozen=True)
class TranslationSettings:
    """`task` of name "translation".

    task.init=DIR starts the encoder (as a prefix LM, the transformer and its head) from a run over tokens;
    task.init=dict(encoder=DIR, decoder=DIR) starts either; cross-attention is new.
    """

    label_smoothing: float = 0.1

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """Parameters and passes of `models.encoder_decoder`: model.name "encoder_decoder", or "transformer" as a prefix LM."""

    settings: TranslationSettings
    model: EncoderDecoder | PrefixDecoder
    info: DataInfo

    name: ClassVar[str] = "translation"
    data: ClassVar[str] = "parallel_text"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "Translation":
        settings = read(TranslationSettings, config.get("task"), "task")
        model = models.build("parallel_text", config, info)
        init = (config.get("task") or {}).get("init")
        only_decoder = hasattr(init, "get") and init.get("decoder") and not init.get("encoder")
        if only_decoder and getattr(model, "shared_embedding", False):
            raise UserError("task.init.decoder: set model.shared_embedding=False, or its tokens' vectors would be lost")
        return cls(settings, model, info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        return self.model.init(key)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean over the target's tokens; "cross_entropy" is without the label smoothing."""
        keys = example_keys(key, batch["position"]) if train else None
        scores = self.model.logits(params, self.model.hidden(params, batch, keys))
        labels, weight = batch["target"][:, 1:], (batch["target_segments"][:, 1:] > 0).astype(jnp.float32)
        total = jnp.sum(weight)
        mean = lambda x: jnp.sum(x * weight) / jnp.maximum(total, 1.0)
        nll = mean(label_scores(scores, labels, 0.0))
        smoothing = self.settings.label_smoothing if train else 0.0
        loss = mean(label_scores(scores, labels, smoothing)) if smoothing else nll
        accuracy = mean((jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32))
        return loss, {"cross_entropy": nll, "accuracy": accuracy, "weight": total}

    def translate(self, params: Params, batch: Batch, search: Search, length: int | None = None) -> Int[Array, "batch length"]:
        """Return token ids of the translations, ended by the end token and filled with it (jittable)."""
        return self.search(params, batch, search, length)[0]

    def search(
        self, params: Params, batch: Batch, search: Search, length: int | None = None
    ) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
        """Return the translations' token ids and their log probabilities (jittable)."""
        first, last = sentence_ends(self.info.tokenizer)
        length = length or self.info.shapes["target"].shape[0] - 1
        cache, step, start = self.model.begin(params, batch, length, search.beams)
        begin = jnp.full(len(batch["source"]), first, jnp.int32)
        return search(step, cache, begin, length=length, eos=last, start=start)

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Representations of the source: "mean", "tokens", "block00/mean" ..."""
        hidden, inner = self.model.source_states(params, batch)
        return representations(hidden, inner, {"segments": batch["source_segments"]})

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """ "logits" f32[batch, time, vocabulary] of the target's tokens from the second on."""
        return {"logits": self.model.logits(params, self.model.hidden(params, batch))}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        tokens = np.asarray(jax.jit(lambda p, b: self.translate(p, b, Search()))(params, dict(batch)))
        lines, read = [], lambda ids, segments: detokenized(self.info.tokenizer, ids[np.asarray(segments) > 0])
        for i, ids in enumerate(tokens):
            lines.append(f"source: {read(np.asarray(batch['source'][i]), batch['source_segments'][i])}")
            lines.append(f"translation: {detokenized(self.info.tokenizer, ids)}")
            lines.append(f"reference: {read(np.asarray(batch['target'][i]), batch['target_segments'][i])}")
        return {"translations": Text(tuple(lines))}

    def index_limits(self) -> dict[str, int]:
        """Rows of the tables that the batch's integers are looked up in."""
        model = self.model
        sides = [model.encoder, model.decoder] if isinstance(model, EncoderDecoder) else [model.transformer] * 2
        return {name: side.config.padded(side.vocabulary) for name, side in zip(("source", "target"), sides, strict=True)}

    def flops(self) -> float:
        return 3 * self.model.flops_forward(self.info.shapes["source"].shape[0], self.info.shapes["target"].shape[0] - 1)


def detokenized(tokenizer: Any, ids: Int[np.ndarray, "time"]) -> str:
    """The text of a target: without the token it begins with, up to the token that ends it."""
    first, last = sentence_ends(tokenizer)
    ids = [int(i) for i in ids]
    ids = ids[1:] if ids[:1] == [first] else ids
    return tokenizer.decode(ids[: ids.index(last)] if last in ids else ids).strip()
