"""What a language model is worth without any training: loss, perplexity, LAMBADA, and a masked-token encoder's loss."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.pipeline import eval_batches
from ssl_jax.data.text.corpus_files import open_documents
from ssl_jax.downstream.evaluators.features import EvaluationData, prepare
from ssl_jax.errors import UserError
from ssl_jax.models.cross_entropy import token_losses
from ssl_jax.pretext.masked_token import masked_token_baselines
from ssl_jax.randomness import stream

Values = Iterator[tuple[str, float]]


def _check(encoder: Any, name: str) -> None:
    if encoder.task.name != name:
        raise UserError(f"downstream: this evaluator needs task.name={name!r}, not {encoder.task.name!r}")


def _mean_over(encoder: Any, dataset: Any, batch_size: int) -> dict[str, float]:
    """The task's loss and metrics over every example of `dataset`, each weighted with its number of terms."""
    task = encoder.task
    key = stream(encoder.seed, "evaluate")

    @jax.jit
    def run(params, raw, mask):
        batch = prepare(dataset, raw)
        # an example's corruption depends on its place in the data set, not in the batch
        batch = {**batch, "position": raw["index"]}
        if task.name == "next_token":
            weights = batch.get("label_weights", jnp.ones(batch["tokens"][:, 1:].shape))
            batch["label_weights"] = weights * mask[:, None]
            loss, metrics = task.loss(params, batch, key, train=False)
            return {"loss": loss, **metrics}
        each = jax.vmap(lambda row: task.loss(params, jax.tree.map(lambda x: x[None], row), key, train=False))
        loss, metrics = each(batch)
        weight = metrics.get("weight", jnp.ones(mask.shape)) * mask
        total = jnp.sum(weight)
        mean = lambda x: jnp.sum(x * weight) / jnp.maximum(total, 1e-9)
        return {**{name: mean(value) for name, value in {"loss": loss, **metrics}.items()}, "weight": total}

    sums: dict[str, float] = {}
    total = 0.0
    for raw, mask in eval_batches(dataset, min(batch_size, dataset.size)):
        values = {name: float(value) for name, value in run(encoder.params, raw, mask).items()}
        weight = values.pop("weight", float(mask.sum()))
        total += weight
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + weight * value
    return {name: value / total for name, value in sums.items()} | {"weight": total}


def token_counts(dataset: Any) -> np.ndarray:
    """i64[vocabulary]: how often each token comes in the data set's text."""
    tokens, size = dataset.example.tokens, dataset.info.tokenizer.size
    counts = np.zeros(size, np.int64)
    for start in range(0, len(tokens), 2**24):
        counts += np.bincount(tokens[start : start + 2**24], minlength=size)
    return counts


@dataclasses.dataclass(frozen=True)
class NextTokenLoss:
    """Loss over the whole test split, in windows that do not overlap: every token but the first is predicted once.

    "loss" in nats a token, "perplexity" a token, "bits_per_byte" of the text; beside it "unigram/loss", what knowing only how
    frequent each token is in the training text achieves.
    """

    batch_size: int = 64

    def __call__(self, encoder: Any, data: EvaluationData) -> Values:
        _check(encoder, "next_token")
        found = _mean_over(encoder, data.test, self.batch_size)
        loss = found["cross_entropy"]
        yield "loss", loss
        yield "perplexity", math.exp(min(loss, 700.0))
        yield "accuracy", found["accuracy"]
        yield "bits_per_byte", loss * found["weight"] / math.log(2) / data.test.info.extra["bytes"]
        yield "unigram/loss", masked_token_baselines(token_counts(data.train), token_counts(data.test))["unigram_entropy"]


@dataclasses.dataclass(frozen=True)
class MaskedTokenLoss:
    """Masked-token loss and accuracy over the whole test split, beside what token frequencies alone achieve."""

    batch_size: int = 64

    def __call__(self, encoder: Any, data: EvaluationData) -> Values:
        _check(encoder, "masked_token")
        found = _mean_over(encoder, data.test, self.batch_size)
        yield "loss", found["cross_entropy"]
        yield "accuracy", found["accuracy"]
        if "next_sentence_accuracy" in found:
            yield "next_sentence_accuracy", found["next_sentence_accuracy"]
        base = masked_token_baselines(token_counts(data.train), token_counts(data.test))
        yield "unigram/loss", base["unigram_entropy"]
        yield "most_frequent/accuracy", base["most_frequent_accuracy"]


# Scoring given texts --------------------------------------------------------------------------------------------------


def score(encoder: Any, rows: Iterator[tuple[list[int], int]], batch_size: int) -> Iterator[tuple[float, int, bool]]:
    """For each (tokens, n): minus log p of the last n tokens given those before, n, and whether each was the likeliest.

    Rows are at most context + 1 tokens long.
    """
    task = encoder.task
    length = task.model.context

    @jax.jit
    def run(params, tokens):
        hidden, _ = task.model.apply({"params": params["transformer"]}, tokens[:, :-1])
        features, weight, bias = task.output(params, hidden)
        if bias is None and task.head.vocabulary < weight.shape[0]:  # rows that only pad the vocabulary stand for nothing
            bias = jnp.zeros(weight.shape[0])
        if bias is not None:
            bias = jnp.where(jnp.arange(weight.shape[0]) < task.head.vocabulary, bias, -1e9)
        nll, _, predicted = token_losses(features, weight, tokens[:, 1:], bias)
        return nll, predicted == tokens[:, 1:]

    pending: list[tuple[list[int], int]] = []

    def flush() -> Iterator[tuple[float, int, bool]]:
        tokens = np.zeros((batch_size, length + 1), np.int32)
        for i, (ids, _) in enumerate(pending):
            tokens[i, : len(ids)] = ids
        nll, right = (np.asarray(x) for x in run(encoder.params, tokens))
        for i, (ids, n) in enumerate(pending):
            last = slice(len(ids) - 1 - n, len(ids) - 1)
            yield float(nll[i, last].sum(dtype=np.float64)), n, bool(right[i, last].all())

    for row in rows:
        pending.append(row)
        if len(pending) == batch_size:
            yield from flush()
            pending = []
    if pending:
        yield from flush()


def sliding_windows(tokens: Any, context: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, n) so that every token but the first is among the last n once, with at least context - stride before it
    (but for those of the first window)."""
    total = len(tokens)
    end = min(context + 1, total)
    yield [int(t) for t in tokens[:end]], end - 1
    while end < total:
        new = min(stride, total - end)
        end += new
        yield [int(t) for t in tokens[max(0, end - context - 1) : end]], new


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text by a sliding window: "token", "word" (by white space) and "byte" perplexity, "bits_per_byte".

    Every document is read by itself, the end-of-text token before its first token where the vocabulary has one. `text` is a
    source with text (text:GLOB, jsonl: ...); default: the test split.
    """

    text: str | None = None
    column: str | int = "text"
    stride: int | None = None  # default: half the context
    batch_size: int = 16

    def __post_init__(self):
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride={self.stride}: must be at least 1")

    def __call__(self, encoder: Any, data: EvaluationData) -> Values:
        _check(encoder, "next_token")
        context = encoder.task.model.context
        stride = self.stride or max(1, context // 2)
        if stride > context:
            raise UserError(f"downstream.perplexity.stride={stride}: must not exceed the model's context of {context}")
        counts = {"words": 0, "bytes": 0}
        nll, predicted = 0.0, 0
        for loss, n, _ in score(encoder, self._rows(data, counts, context, stride), self.batch_size):
            nll, predicted = nll + loss, predicted + n
        if predicted == 0:
            raise UserError(f"downstream.perplexity.text={self.text}: holds no token to predict")
        yield "loss", nll / predicted
        yield "token", _exp(nll / predicted)
        yield "word", _exp(nll / max(counts["words"], 1))
        yield "byte", _exp(nll / counts["bytes"])
        yield "bits_per_byte", nll / counts["bytes"] / math.log(2)

    def _rows(self, data: EvaluationData, counts: dict, context: int, stride: int) -> Iterator[tuple[list[int], int]]:
        tokenizer = data.test.info.tokenizer
        if self.text is None:
            extra = data.test.info.extra
            counts |= {"words": extra["words"], "bytes": extra["bytes"]}
            yield from sliding_windows(data.test.example.tokens, context, stride)
            return
        documents = open_documents(self.text, column=self.column)
        start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ids: list[int] = []
        for piece in documents.pieces(0, documents.size):
            if piece.first and ids:
                yield from sliding_windows(ids, context, stride)
            ids = (list(start) if piece.first else ids) + tokenizer.encode(piece.text)
            counts["words"] += len(piece.text.split())
            counts["bytes"] += len(piece.text.encode())
        yield from sliding_windows(ids, context, stride)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


@dataclasses.dataclass(frozen=True)
class Lambada:
    """The last word of a passage given the rest (Paperno et al. 2016): "accuracy" of greedy decoding over all of the word's
    tokens, "perplexity" of the word, as GPT-2's authors score it (Radford et al. 2019, section 3.3, no stop-word filter).

    `text`: a source with one passage an example (jsonl:FILE with "text", or text:FILE with one a line).
    """

    text: str = ""
    column: str | int = "text"
    batch_size: int = 16

    def __post_init__(self):
        if not self.text:
            raise UserError("text is missing: name a source of passages, such as jsonl:lambada_test.jsonl")

    def __call__(self, encoder: Any, data: EvaluationData) -> Values:
        _check(encoder, "next_token")
        tokenizer, context = data.test.info.tokenizer, encoder.task.model.context
        found = list(score(encoder, self._rows(tokenizer, context), self.batch_size))
        if not found:
            raise UserError(f"downstream.lambada.text={self.text}: holds no passage of two words or more")
        yield "accuracy", sum(right for _, _, right in found) / len(found)
        yield "perplexity", _exp(sum(nll for nll, _, _ in found) / len(found))
        yield "passages", float(len(found))

    def _rows(self, tokenizer: Any, context: int) -> Iterator[tuple[list[int], int]]:
        documents = open_documents(self.text, column=self.column, documents="line")
        passages: list[str] = []
        for piece in documents.pieces(0, documents.size):
            if piece.first:
                passages.append(piece.text)
            elif piece.text:
                passages[-1] += piece.text
        for passage in passages:
            passage = passage.strip()
            before, space, word = passage.rpartition(" ")
            if not space or not before.strip():
                continue
            target = tokenizer.encode(" " + word)
            ids = (tokenizer.encode(before) + target)[-(context + 1) :]
            yield ids, min(len(target), len(ids) - 1)
