"""Extractive question answering: where in a text does the answer begin and end (Devlin et al. 2019, sections 4.2 and 4.3)."""

import dataclasses
import json
import pathlib
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.data.text.squad import SquadSource
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics import squad
from ssl_jax.downstream.supervised.spans import Answer, answers, likeliest_sentence
from ssl_jax.downstream.supervised.text_encoder import init_transformer, label_scores
from ssl_jax.errors import UserError
from ssl_jax.models.language import Transformer
from ssl_jax.models.layers import dropout
from ssl_jax.pretext.text_features import hidden_states, real_tokens, representations, vocabulary_limits
from ssl_jax.randomness import example_keys, substream
from ssl_jax.reports.records import Record
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params, Task, Text

IMPOSSIBLE = -1e9  # the score of a place where no answer can begin or end


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringSettings:
    """`task` of name "question_answering"."""

    causal: bool = False  # True to start from a next-token model
    dropout: float = 0.0  # before the head

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
    """Parameters: "transformer" and "span", a start and an end score for every token; the first token stands for no answer."""

    settings: QuestionAnsweringSettings
    model: Transformer
    info: DataInfo

    name: ClassVar[str] = "question_answering"
    data: ClassVar[str] = "squad"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "QuestionAnswering":
        settings = read(QuestionAnsweringSettings, config.get("task"), "task")
        return cls(settings, models.build("tokens", config, info, causal=settings.causal), info)

    @property
    def _head(self) -> nn.Dense:
        return nn.Dense(2, kernel_init=nn.initializers.normal(self.model.config.init_std), dtype=jnp.float32)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        return {
            "transformer": init_transformer(self.model, substream(key, "transformer"), batch),
            "span": self._head.init(substream(key, "span"), jnp.zeros((1, self.model.config.width)))["params"],
        }

    def scores(self, params: Params, batch: Batch, hidden: Array, keys=None) -> tuple[Array, Array]:
        """Start and end scores f32[batch, time]; IMPOSSIBLE outside the context, but for the first token."""
        x = dropout(hidden.astype(jnp.float32), self.settings.dropout, keys, "head")
        logits = self._head.apply({"params": params["span"]}, x)
        possible = batch.get("answerable", real_tokens(batch))  # a text without a question may be answered anywhere
        if possible is not None:
            logits = jnp.where(possible[..., None] > 0, logits, IMPOSSIBLE)
        return logits[..., 0], logits[..., 1]

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of the start's and the end's cross entropy."""
        keys = example_keys(key, batch["position"]) if train else None
        hidden, _ = hidden_states(self.model, params, batch, keys)
        start, end = self.scores(params, batch, hidden, keys)
        loss = jnp.mean(label_scores(start, batch["start"], 0.0) + label_scores(end, batch["end"], 0.0)) / 2
        right = (jnp.argmax(start, axis=-1) == batch["start"]) & (jnp.argmax(end, axis=-1) == batch["end"])
        return loss, {"accuracy": jnp.mean(right.astype(jnp.float32))}

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The transformer's representations, "start_logits" and "end_logits"."""
        hidden, inner = hidden_states(self.model, params, batch)
        start, end = self.scores(params, batch, hidden)
        return representations(hidden, inner, batch) | {"start_logits": start, "end_logits": end}

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        found = self.features(params, batch)
        return {name: found[name] for name in ("tokens", "start_logits", "end_logits")}

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None) -> dict[str, Text]:
        """Windows with the likeliest start and end marked as [[answer]]."""
        found = jax.jit(self.features)(params, dict(batch))
        start, end = (np.argmax(np.asarray(found[name]), axis=-1) for name in ("start_logits", "end_logits"))
        decode, lines = lambda ids: self.info.tokenizer.decode(ids.tolist()), []
        for tokens, segments, a, b in zip(*(np.asarray(batch[n]) for n in ("tokens", "segments")), start, end, strict=True):
            text = tokens[segments > 0]
            span = f"[[{decode(text[a : b + 1])}]]" if 0 < a <= b else "[[no answer]]"
            lines.append(f"{decode(text[:a])} {span} {decode(text[max(b + 1, a) :])}")
        return {"answers": Text(tuple(lines))}

    def index_limits(self) -> dict[str, int]:
        """Rows of the tables that the batch's integers are looked up in."""
        length = self.info.shapes["tokens"].shape[0]
        return vocabulary_limits(self.model) | {"start": length, "end": length}

    def flops(self) -> float:
        return 3 * self.model.config.flops_forward(self.info.shapes["tokens"].shape[0], causal=self.settings.causal)


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringMetrics(Evaluator):
    """Exact match and F1 in percent over whole questions, as the official SQuAD script of the data's version defines them.

    Where questions may have no answer (version 2.0), one is left unanswered when "no answer" scores more than
    `null_score_diff_threshold` above the best span; "best_f1" is what the best threshold would give. The baseline
    "likeliest_sentence" answers with the sentence that shares most words with the question. With a work directory
    predictions.json (as the official script reads it) and nbest_predictions.json are written there.
    """

    n_best: int = 20
    max_answer_length: int = 30  # tokens
    null_score_diff_threshold: float = 0.0
    batch_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        for name in ("n_best", "max_answer_length", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def representations(self) -> tuple[str, ...]:
        return ("start_logits", "end_logits")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        source, version = data.test.source, data.test.info.extra.get("version", "1.1")
        if not isinstance(source, SquadSource):
            raise UserError("data.test: question_answering is measured on squad:FILE")
        scores = encoder.extract(data.test, ("start_logits", "end_logits"), self.batch_size)
        found = answers(
            source.questions, source.windows, scores["start_logits"], scores["end_logits"],
            n_best=self.n_best, max_answer_length=self.max_answer_length,
        )  # fmt: skip
        by_id = {question.id: answer for question, answer in zip(source.questions, found, strict=True)}
        correct = {q.id: [text for _, text in q.answers] for q in source.questions}
        threshold = self.null_score_diff_threshold if version == "2.0" else None
        predictions = {q: answer.text(threshold) for q, answer in by_id.items()}
        yield from squad.records(predictions, correct, version=version)
        if version == "2.0":
            doubt = {q: answer.doubt for q, answer in by_id.items()}
            certain = {q: answer.text() for q, answer in by_id.items()}
            for metric in ("exact_match", "f1"):
                value, best = squad.best_threshold(certain, correct, doubt, metric=metric)
                yield Record(f"best_{metric}", value, n=len(correct))
                if np.isfinite(best):
                    yield Record(f"best_{metric}_threshold", best)
        baseline = {q.id: likeliest_sentence(q) for q in source.questions}
        for record in squad.records(baseline, correct, version=version):
            yield record.of(baseline="likeliest_sentence", headline=False)
        if data.workdir:
            write_predictions(data.workdir, predictions, by_id, version)


def write_predictions(workdir: str, predictions: dict[str, str], found: dict[str, Answer], version: str) -> None:
    """predictions.json {id: text}, and nbest_predictions.json {id: [{"text", "probability"}, ...]}."""
    nbest = {
        q: [{"text": t, "probability": p} for t, p in answer.probabilities(version == "2.0")] for q, answer in found.items()
    }
    for name, value in (("predictions.json", predictions), ("nbest_predictions.json", nbest)):
        (pathlib.Path(workdir) / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
