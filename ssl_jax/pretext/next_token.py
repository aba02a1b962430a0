"""Next-token prediction (GPT: Radford et al. 2018, 2019)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import models
from ssl_jax.errors import UserError
from ssl_jax.models import language
from ssl_jax.models.cross_entropy import cross_entropy, logits
from ssl_jax.models.language import Head, Transformer
from ssl_jax.pretext.text_features import hidden_states, text_features, vocabulary_limits
from ssl_jax.randomness import example_keys
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text


@dataclasses.dataclass(frozen=True)
class Sample:
    """`task.sample`: the sampled continuation that a report shows."""

    prompt: str | None = None  # default: the start of a test window
    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None

    def __post_init__(self):
        if self.tokens < 1 or self.temperature < 0:
            raise UserError(f"tokens={self.tokens}: must be at least 1, and temperature={self.temperature} not negative")


@dataclasses.dataclass(frozen=True)
class NextTokenSettings:
    """`task` of name "next_token"."""

    z_loss: float = 0.0  # weight of log(Z)^2
    sample: Sample = dataclasses.field(default_factory=Sample)

    def __post_init__(self):
        if self.z_loss < 0:
            raise UserError(f"z_loss={self.z_loss}: must not be negative")


@dataclasses.dataclass(frozen=True)
class NextToken(Task):
    """A causal transformer trained with cross-entropy on "tokens" i32[batch, time + 1]; the last token is only a label.

    With "segments" (packed documents), attention stays within a document and the last token of a document predicts nothing.
    "positions" i32[batch, time + 1] replace the default 0, 1, 2, ...
    """

    name: ClassVar[str] = "next_token"
    data: ClassVar[str] = "tokens"

    model: Transformer
    head: Head
    settings: NextTokenSettings
    info: DataInfo

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "NextToken":
        settings = configs.read(NextTokenSettings, config.get("task"), "task")
        length = info.shapes["tokens"].shape[0] - 1 if "tokens" in info.shapes else None
        model = models.build("tokens", config, info, causal=True, length=length)
        return cls(model, Head.of(model), settings, info)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        tokens = batch["tokens"][:1, : self.model.context]
        return language.init(self.model, self.head, key, tokens)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        tokens, segments = batch["tokens"], batch.get("segments")
        keys = example_keys(key, batch["position"]) if train else None
        options = {} if segments is None else {"segments": segments[:, :-1]}
        if "positions" in batch:
            options["positions"] = batch["positions"][:, :-1]
        hidden, _ = self.model.apply({"params": params["transformer"]}, tokens[:, :-1], keys=keys, **options)
        weights = batch.get("label_weights")
        if segments is not None:  # the last token of a document does not predict the first of the next one
            same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
            weights = same.astype(jnp.float32) if weights is None else weights * same
        features, weight, bias = self.output(params, hidden)
        return cross_entropy(features, weight, tokens[:, 1:], bias, label_weights=weights, z_loss=self.settings.z_loss)

    def output(self, params: Params, hidden: Float[Array, "*batch dim"]):
        """Return features, weight and bias of the output layer (`models.language.Head`)."""
        return self.head.apply({"params": params.get("head", {})}, hidden, params["transformer"]["token_embedding"])

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "last", "mean", "cls", "tokens" and each block's "block00/last", "block00/mean", ... of the first `context`
        tokens."""
        return text_features(self.model, params, batch)

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return "logits" f32[batch, time, vocabulary]; the batch may mark padding by 0 in "attention_mask"."""
        hidden, _ = hidden_states(self.model, params, batch)
        return {"logits": logits(*self.output(params, hidden))[..., : self.head.vocabulary]}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        """Return a continuation sampled from the prompt (`task.sample`)."""
        from ssl_jax.pretext.generation import generate, prompt_tokens

        sample, tokenizer = self.settings.sample, self.info.tokenizer
        if sample.prompt is None:
            prompt = np.asarray(batch["tokens"][0, : max(1, self.model.context // 4)])
        else:
            prompt = np.asarray(prompt_tokens(tokenizer, sample.prompt), np.int32)
        out = generate(
            self, params, prompt, max_tokens=sample.tokens, temperature=sample.temperature, top_k=sample.top_k, key=key
        )
        text = [tokenizer.decode(part) for part in (prompt, np.asarray(out[0]))]
        return {"sample": Text((f"prompt: {text[0]}", f"continuation: {text[1]}"))}

    def index_limits(self) -> dict[str, int]:
        """Return the number of rows of each table that the batch's integers index."""
        limits = vocabulary_limits(self.model)
        if self.model.config.positions == "learned":
            limits["positions"] = self.model.context + 1  # the last token is only predicted: its position is not looked up
        return limits

    def flops(self) -> float:
        """Return 3 x the forward pass of one window; causal attention counts half, the embedding look-up nothing."""
        c, time = self.model.config, self.info.shapes["tokens"].shape[0] - 1
        return 3 * (c.flops_forward(time, causal=True) + c.flops_head(time, self.head.vocabulary))
