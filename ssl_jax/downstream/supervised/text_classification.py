"""Classification of sentences and pairs of sentences (Devlin et al. 2019, section 4.1), and its metrics."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.data.labels import several_classes
from ssl_jax.downstream.class_weights import balanced_weights, positive_weights
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import majority
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.downstream.supervised.text_encoder import class_scores, init_transformer, label_scores
from ssl_jax.errors import UserError
from ssl_jax.models.language import Pooler, Transformer, pooled
from ssl_jax.models.layers import dropout
from ssl_jax.pretext.text_features import hidden_states, real_tokens, representations, vocabulary_limits
from ssl_jax.randomness import example_keys, substream
from ssl_jax.reports.records import Record, over_examples
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text

POOLINGS = ("cls", "mean", "last")


@dataclasses.dataclass(frozen=True)
class TextClassificationSettings:
    """`task` of name "text_classification".

    pooling: "cls" (through BERT's pooler), "mean" over the text, or "last" token, which alone has read all in a causal model.
    """

    pooling: str = "cls"
    causal: bool = False  # True to start from a next-token model
    dropout: float = 0.1  # before the head
    label_smoothing: float = 0.0
    class_weights: str | None = None  # "balanced": classes weigh the same, whatever their sizes

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling={self.pooling!r}: must be one of {', '.join(POOLINGS)}")
        if self.causal and self.pooling == "cls":
            raise UserError('pooling="cls": the first token of a causal model has read nothing; use "last" or "mean"')
        if self.class_weights not in (None, "balanced"):
            raise UserError(f'class_weights={self.class_weights!r}: must be "balanced" or None')
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TextClassification(Task):
    """Parameters: "transformer", "pooler" (with pooling "cls") and "head". Batches: those of the kind "labelled_text"."""

    settings: TextClassificationSettings
    model: Transformer
    info: DataInfo

    name: ClassVar[str] = "text_classification"
    data: ClassVar[str] = "labelled_text"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "TextClassification":
        settings = read(TextClassificationSettings, config.get("task"), "task")
        if not info.classes:
            raise UserError("data.train: has no labels; text_classification needs them")
        return cls(settings, models.build("tokens", config, info, causal=settings.causal), info)

    @property
    def several_classes(self) -> bool:
        """Whether a text may have several classes."""
        return several_classes(self.info.shapes)

    @property
    def _head(self) -> nn.Dense:
        init = nn.initializers.normal(self.model.config.init_std)
        return nn.Dense(len(self.info.classes), kernel_init=init, dtype=jnp.float32)

    @property
    def _pooler(self) -> Pooler:
        return Pooler(self.model.config, self.model.dtype)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        width = self.model.config.width
        params = {
            "transformer": init_transformer(self.model, substream(key, "transformer"), batch),
            "head": self._head.init(substream(key, "head"), jnp.zeros((1, width)))["params"],
        }
        if self.settings.pooling == "cls":
            params["pooler"] = self._pooler.init(substream(key, "pooler"), jnp.zeros((1, 1, width)))["params"]
        return params

    def _logits(self, params: Params, batch: Batch, hidden: Array, keys=None) -> tuple[Array, Array]:
        if self.settings.pooling == "cls":
            sentence = self._pooler.apply({"params": params["pooler"]}, hidden).astype(jnp.float32)
        else:
            sentence = pooled(hidden, real_tokens(batch))[self.settings.pooling]
        x = dropout(sentence, self.settings.dropout, keys, "head")
        return self._head.apply({"params": params["head"]}, x), sentence

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        keys = example_keys(key, batch["position"]) if train else None
        hidden, _ = hidden_states(self.model, params, batch, keys)
        logits, _ = self._logits(params, batch, hidden, keys)
        smoothing = self.settings.label_smoothing if train else 0.0
        if self.several_classes:
            right = jnp.all((logits > 0) == (batch["label"] > 0), axis=-1)
            positive = positive_weights(self.info.extra["class_counts"]) if self.settings.class_weights else 1.0
            loss = jnp.mean(class_scores(logits, batch["label"], smoothing, jnp.asarray(positive, jnp.float32)))
            return loss, {"subset_accuracy": jnp.mean(right.astype(jnp.float32))}
        scores = label_scores(logits, batch["label"], smoothing)
        if self.settings.class_weights:
            scores *= jnp.asarray(balanced_weights(self.info.extra["class_counts"]), jnp.float32)[batch["label"]]
        return jnp.mean(scores), {"accuracy": jnp.mean((jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32))}

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The transformer's representations, "pooled" (what the head reads) and "logits"."""
        hidden, inner = hidden_states(self.model, params, batch)
        logits, sentence = self._logits(params, batch, hidden)
        return representations(hidden, inner, batch) | {"pooled": sentence, "logits": logits}

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        found = self.features(params, batch)
        return {name: found[name] for name in ("tokens", "pooled", "logits")}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        """Sentences with their predicted and their true class."""
        logits, labels = np.asarray(jax.jit(self.features)(params, dict(batch))["logits"]), np.asarray(batch["label"])
        if self.several_classes:
            named = lambda row: ", ".join(self.info.classes[c] for c in np.flatnonzero(row)) or "none"
            said, true = map(named, logits > 0), map(named, labels)
        else:
            said, true = ([self.info.classes[c] for c in numbers] for numbers in (logits.argmax(axis=1), labels))
        lines = []
        for tokens, segments, guess, label in zip(*(np.asarray(batch[n]) for n in ("tokens", "segments")), said, true,
                                                  strict=True):  # fmt: skip
            text = self.info.tokenizer.decode(tokens[segments > 0].tolist())
            lines.append(f"{guess} ({'right' if guess == label else f'wrong, it is {label}'}): {text}")
        return {"predictions": Text(tuple(lines))}

    def index_limits(self) -> dict[str, int]:
        """Rows of the tables that the batch's integers are looked up in."""
        return vocabulary_limits(self.model) | {"label": 2 if self.several_classes else len(self.info.classes)}

    def flops(self) -> float:
        time = self.info.shapes["tokens"].shape[0]
        return 3 * self.model.config.flops_forward(time, causal=self.settings.causal)


# Metrics --------------------------------------------------------------------------------------------------------------


def matthews(table: Int[np.ndarray, "classes classes"]) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004, equation 8); 0 where it is undefined."""
    true, said, total = table.sum(axis=1).astype(float), table.sum(axis=0).astype(float), float(table.sum())
    covariance = np.trace(table) * total - true @ said
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def text_metrics(predicted: Int[np.ndarray, "examples"], labels: Int[np.ndarray, "examples"], classes: int) -> dict[str, float]:
    """Return "accuracy", "matthews", "f1_macro" and, of two classes, "f1" of the second."""
    table = metrics.confusion(predicted, labels, classes)
    f1 = metrics.f1_of_classes(table)
    found = {"accuracy": float(np.trace(table) / table.sum()), "matthews": matthews(table), "f1_macro": metrics.macro_f1(table)}
    return found | ({"f1": float(f1[1])} if classes == 2 else {})


@dataclasses.dataclass(frozen=True)
class TextClassificationMetrics(Evaluator):
    """The trained head over the whole test split, beside the majority class and a bag of tokens.

    With several classes per text `metrics.several_classes`, beside the bag of tokens.
    """

    batch_size: int = 128
    bag_of_tokens: bool = True

    requires_labels = ("train", "test")
    several_classes = True

    @property
    def representations(self) -> tuple[str, ...]:
        return ("logits",)

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        test = encoder.extract(data.test, ("logits",), self.batch_size)
        train, labels = data.train.labels(), test.get("label")
        classes = metrics.check_labels(train, labels, data.classes)
        several = labels.ndim == 2
        if several:
            yield from metrics.several_classes(test["logits"], labels, data.classes)
        else:
            yield from self._measure(test["logits"], labels, classes, headline=True)
            yield majority(train, labels)
        if self.bag_of_tokens:
            from ssl_jax.downstream.evaluators.bag_of_tokens import bag_of_tokens

            logits = bag_of_tokens(data.train, data.test, classes)[test["index"]]
            if several:
                yield metrics.headline_metric(logits, labels, baseline="bag_of_tokens")
            else:
                yield from self._measure(logits, labels, classes, baseline="bag_of_tokens")
        for split, dataset in (("train", data.train), ("test", data.test)):
            if dataset.info.extra.get("truncated"):
                yield Record(split, float(dataset.info.extra["truncated"]), setting="truncated")

    @staticmethod
    def _measure(logits: np.ndarray, labels: np.ndarray, classes: int, *, headline: bool = False, **fields: Any) -> Records:
        """Yield the accuracy and the rest of `text_metrics`."""
        yield over_examples("accuracy", metrics.hits(logits, labels), headline=headline, **fields)
        for name, value in text_metrics(logits.argmax(axis=1), labels, classes).items():
            if name != "accuracy":
                yield Record(name, value, n=len(labels), **fields)
