"""Evaluate a language model without further training: loss, perplexity, LAMBADA, and a masked-token encoder's loss."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ssl_jax.data.pipeline import eval_batches
from ssl_jax.data.text.corpus_files import Documents, open_documents, whole_documents
from ssl_jax.data.text.encoding import bucket
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.features import Encoder, EncoderProgram, rows_of_batch
from ssl_jax.errors import UserError
from ssl_jax.models.cross_entropy import token_losses
from ssl_jax.pretext.masked_token import masked_token_baselines
from ssl_jax.pretext.token_masking import TokenMaskSettings
from ssl_jax.randomness import stream
from ssl_jax.reports.records import Record, over_examples


def _check(encoder: Any, name: str) -> None:
    _check_task(encoder.task.name, name)


def _check_task(found: str, name: str) -> None:
    if found != name:
        raise UserError(f"downstream: this evaluator needs task.name={name!r}, not {found!r}")


def _check_config(data: EvaluationData, name: str) -> None:
    """Raise UserError, before training, if the run has another task."""
    if data.config is not None and "task" in data.config:
        _check_task(data.config.task.get("name"), name)


def _documents(data: EvaluationData, uri: str, **options: Any) -> Documents:
    """Return the documents of an evaluator's text; bad lines are skipped if the run's data skip them."""
    section = {} if data.config is None else data.config.get("data") or {}
    return open_documents(uri, skip_bad=section.get("on_bad_example") == "skip", **options)


def _mean_over(
    encoders: Sequence[Encoder], dataset: Any, batch_size: int, task: Any = None, name: str = "mean over examples"
) -> list[dict[str, float]]:
    """Return for each encoder the task's mean loss and metrics over all examples, weighted by their numbers of terms.

    Args:
        task: the encoders' with other settings.
        name: of this task's compiled program.
    """
    task = task or encoders[0].task

    def totals(own, batch):
        batch, key = dict(batch), stream(own["seed"], "evaluate")
        mask = batch.pop("mask")
        # an example's corruption depends on its place in the data set, not in the batch
        batch["position"] = batch["index"]
        if task.name == "next_token":
            weights = batch.get("label_weights", jnp.ones(batch["tokens"][:, 1:].shape))
            batch["label_weights"] = weights * mask[:, None]
            loss, metrics = task.loss(own["params"], batch, key, train=False)
            return {"loss": loss, **metrics}
        each = jax.vmap(lambda row: task.loss(own["params"], jax.tree.map(lambda x: x[None], row), key, train=False))
        loss, metrics = each(batch)
        weight = metrics.get("weight", jnp.ones(mask.shape)) * mask
        total = jnp.sum(weight)
        mean = lambda x: jnp.sum(x * weight) / jnp.maximum(total, 1e-9)
        return {**{name: mean(value) for name, value in {"loss": loss, **metrics}.items()}, "weight": total}

    owns = [{"params": encoder.params, "seed": encoder.seed} for encoder in encoders]
    program = EncoderProgram(encoders, dataset, totals, owns, name)
    sums: list[dict[str, float]] = [{"weight": 0.0} for _ in encoders]
    for raw, mask in eval_batches(dataset, rows_of_batch(encoders, min(batch_size, dataset.size))):
        values = {name: program.each(value) for name, value in program(raw, mask=mask).items()}
        weights = values.pop("weight", [mask.sum()] * len(encoders))
        for k, (own, weight) in enumerate(zip(sums, weights, strict=True)):
            own["weight"] += float(weight)
            for name, value in values.items():
                own[name] = own.get(name, 0.0) + float(weight) * float(value[k])
    return [{name: value / own["weight"] for name, value in own.items()} | {"weight": own["weight"]} for own in sums]


def _check_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"{what}: the model's loss is {loss}; training diverged: lower optimizer.lr, or evaluate an earlier step"
        )


def token_counts(dataset: Any) -> np.ndarray:
    """Return i64[vocabulary]: the count of each token in the data set's text."""
    tokens, size = dataset.example.tokens, dataset.info.tokenizer.size
    counts = np.zeros(size, np.int64)
    for start in range(0, len(tokens), 2**24):
        counts += np.bincount(tokens[start : start + 2**24], minlength=size)
    return counts


@dataclasses.dataclass(frozen=True)
class NextTokenLoss(Evaluator):
    """Loss over the whole test split, in windows that do not overlap: every token but the first is predicted once.

    Yields "loss" in nats per token, "perplexity" per token, "bits_per_byte" of the text; and the baseline "unigram/loss", of
    a unigram model of the training text.
    """

    batch_size: int = 64

    @property
    def names(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy", "bits_per_byte", "unigram/loss")

    def check(self, data: EvaluationData) -> None:
        _check_config(data, "next_token")

    def __call__(self, encoder: Any, data: EvaluationData) -> Records:
        _check(encoder, "next_token")
        found = encoder.result(data, repr(self), lambda encoders: _mean_over(encoders, data.test, self.batch_size))
        _check_finite(found["loss"], data.test.source.name)
        loss = found["cross_entropy"]
        n = int(found["weight"])
        yield Record("loss", loss, n=n, lower_is_better=True, headline=True)
        yield Record("perplexity", math.exp(min(loss, 700.0)), n=n, lower_is_better=True)
        yield Record("accuracy", found["accuracy"], n=n)
        bits = loss * found["weight"] / math.log(2) / data.test.info.extra["bytes"]
        yield Record("bits_per_byte", bits, n=n, lower_is_better=True)
        base = masked_token_baselines(token_counts(data.train), token_counts(data.test))
        yield Record("loss", base["unigram_entropy"], "unigram", n=n, lower_is_better=True)


@dataclasses.dataclass(frozen=True)
class MaskedTokenLoss(Evaluator):
    """Masked-token loss and accuracy over the whole test split, with a unigram model as baseline.

    `ratio`: the share of tokens that are hidden (single tokens, 80/10/10), so that models trained with other masks can be
    compared; without it, tokens are hidden as in training.
    """

    batch_size: int = 64
    ratio: float | None = None

    def __post_init__(self):
        if self.ratio is not None:
            TokenMaskSettings(ratio=self.ratio)  # UserError outside (0, 1)

    @property
    def names(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "next_sentence_accuracy", "unigram/loss", "most_frequent/accuracy")

    def check(self, data: EvaluationData) -> None:
        _check_config(data, "masked_token")

    def __call__(self, encoder: Any, data: EvaluationData) -> Records:
        _check(encoder, "masked_token")
        task = encoder.task
        if self.ratio is not None:
            mask = TokenMaskSettings(ratio=self.ratio)
            task = dataclasses.replace(task, settings=dataclasses.replace(task.settings, mask=mask))
        measure = lambda encoders: _mean_over(encoders, data.test, self.batch_size, task, f"mean with ratio={self.ratio}")
        found = encoder.result(data, repr(self), measure)
        _check_finite(found["loss"], data.test.source.name)
        n = int(found["weight"])
        yield Record("loss", found["cross_entropy"], n=n, lower_is_better=True, headline=True)
        yield Record("accuracy", found["accuracy"], n=n)
        if "next_sentence_accuracy" in found:
            yield Record("next_sentence_accuracy", found["next_sentence_accuracy"])
        base = masked_token_baselines(token_counts(data.train), token_counts(data.test))
        yield Record("loss", base["unigram_entropy"], "unigram", n=n, lower_is_better=True)
        yield Record("accuracy", base["most_frequent_accuracy"], "most_frequent", n=n)


# Scoring given texts --------------------------------------------------------------------------------------------------


def score(encoder: Any, rows: Iterable[tuple[list[int], int]], batch_size: int) -> Iterator[tuple[float, int, bool]]:
    """For each (tokens, n) yield -log p of the last n tokens given those before, n, and whether each was the likeliest.

    Rows are at most context + 1 tokens long. A batch is padded to its longest row, in few lengths.
    """
    rows, task = iter(rows), encoder.task
    while batch := list(itertools.islice(rows, batch_size)):
        length = bucket(max(len(ids) for ids, _ in batch) - 1, task.model.context)
        tokens = np.zeros((bucket(len(batch), batch_size, least=1), length + 1), np.int32)
        for i, (ids, _) in enumerate(batch):
            tokens[i, : len(ids)] = ids
        nll, right = (np.asarray(x) for x in _token_scores(task.model, task.head, encoder.params, tokens))
        for i, (ids, n) in enumerate(batch):
            last = slice(len(ids) - 1 - n, len(ids) - 1)
            loss = float(nll[i, last].sum(dtype=np.float64))
            _check_finite(loss, "a scored text")
            yield loss, n, bool(right[i, last].all())


@functools.partial(jax.jit, static_argnames=("model", "head"))
def _token_scores(model: Any, head: Any, params: Any, tokens: Int[Array, "batch time"]) -> tuple[Array, Array]:
    """Return -log p of each token but the first given those before it, and whether it was the likeliest; both
    [batch, time - 1]."""
    hidden, _ = model.apply({"params": params["transformer"]}, tokens[:, :-1])
    top = {"params": params.get("head", {})}
    features, weight, bias = head.apply(top, hidden, params["transformer"]["token_embedding"])
    if bias is None and head.vocabulary < weight.shape[0]:  # exclude rows that only pad the vocabulary
        bias = jnp.zeros(weight.shape[0])
    if bias is not None:
        bias = jnp.where(jnp.arange(weight.shape[0]) < head.vocabulary, bias, -1e9)
    nll, _, predicted = token_losses(features, weight, tokens[:, 1:], bias)
    return nll, predicted == tokens[:, 1:]


def sliding_windows(tokens: Any, context: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yield (tokens, n) so that every token but the first is once among the last n, with at least context - stride tokens
    before it (except in the first window). Nothing for fewer than two tokens."""
    total = len(tokens)
    end = min(context + 1, total)
    if total > 1:
        yield [int(t) for t in tokens[:end]], end - 1
    while end < total:
        new = min(stride, total - end)
        end += new
        yield [int(t) for t in tokens[max(0, end - context - 1) : end]], new


@dataclasses.dataclass(frozen=True)
class Perplexity(Evaluator):
    """Perplexity of a text by a sliding window: "token", "word" (by white space) and "byte" perplexity, "bits_per_byte".

    Every document is scored separately, after the token that begins a text (`Tokenizer.begin_ids`). `text` is a source of
    text (text:GLOB, jsonl: ...); by default the test split.
    """

    text: str | None = None
    column: str | int = "text"
    stride: int | None = None  # default: half the context
    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride={self.stride}: must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        return ("loss", "token", "word", "byte", "bits_per_byte", "skipped")

    def check(self, data: EvaluationData) -> None:
        """Raise UserError for a task without next tokens, a stride beyond the context and a text that cannot be read."""
        _check_config(data, "next_token")
        if "tokens" in data.test.info.shapes:
            self._stride(data.test.info.shapes["tokens"].shape[0] - 1)
        if self.text is not None:
            documents = _documents(data, self.text, column=self.column)
            if not any(piece.text.strip() for piece in documents.pieces(0, documents.size)):
                raise UserError(f"text={self.text}: holds no text")

    def _stride(self, context: int) -> int:
        stride = self.stride or max(1, context // 2)
        if stride > context:
            raise UserError(f"stride={stride}: must not exceed the model's context of {context}")
        return stride

    def __call__(self, encoder: Any, data: EvaluationData) -> Records:
        _check(encoder, "next_token")
        context = encoder.task.model.context
        stride = self._stride(context)
        counts = {"words": 0, "bytes": 0}
        nll, predicted = 0.0, 0
        for loss, n, _ in score(encoder, self._rows(data, counts, context, stride), self.batch_size):
            nll, predicted = nll + loss, predicted + n
        if predicted == 0:
            raise UserError(f"downstream.perplexity.text={self.text}: holds no token to predict")
        yield Record("loss", nll / predicted, n=predicted, lower_is_better=True)
        yield Record("token", _exp(nll / predicted), n=predicted, lower_is_better=True, headline=True)
        yield Record("word", _exp(nll / max(counts["words"], 1)), n=counts["words"], lower_is_better=True, headline=True)
        yield Record("byte", _exp(nll / counts["bytes"]), n=counts["bytes"], lower_is_better=True)
        yield Record("bits_per_byte", nll / counts["bytes"] / math.log(2), n=counts["bytes"], lower_is_better=True)
        if counts.get("skipped"):
            yield Record("skipped", float(counts["skipped"]))

    def _rows(self, data: EvaluationData, counts: dict, context: int, stride: int) -> Iterator[tuple[list[int], int]]:
        if self.text is None:
            extra = data.test.info.extra
            counts |= {"words": extra["words"], "bytes": extra["bytes"]}
            yield from sliding_windows(data.test.example.tokens, context, stride)
            return
        tokenizer = data.test.info.tokenizer
        documents = _documents(data, self.text, column=self.column)
        ids: list[int] = []
        for piece in documents.pieces(0, documents.size):
            if piece.first:
                yield from sliding_windows(ids, context, stride)
                ids = list(tokenizer.begin_ids)
            ids += tokenizer.encode_pieces([piece.text], [not piece.first])[0]
            counts["words"] += len(piece.text.split())
            counts["bytes"] += len(piece.text.encode("utf-8", "surrogatepass"))
        counts["skipped"] = documents.skipped
        yield from sliding_windows(ids, context, stride)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def continuation(tokenizer: Any, before: str, after: str) -> tuple[list[int], int]:
    """Return token ids of before + after, preceded by the tokenizer's begin tokens, and how many of them belong to `after`.

    Both are encoded together and then divided, since some tokenizers begin every text with a space. A token that spans both
    belongs to `after`.
    """
    whole, alone = tokenizer.encode_batch([before + after, before])
    shared = 0
    while shared < min(len(whole), len(alone)) and whole[shared] == alone[shared]:
        shared += 1
    return [*tokenizer.prefix_ids, *whole], len(whole) - shared


@dataclasses.dataclass(frozen=True)
class Lambada(Evaluator):
    """The last word of a passage given the rest (Paperno et al. 2016): "accuracy" of greedy decoding over all of the word's
    tokens, "perplexity" of the word, as GPT-2's authors score it (Radford et al. 2019, section 3.3, no stop-word filter).

    `text`: a source with one passage per example (jsonl:FILE with "text", or text:FILE with one per line).
    """

    text: str = ""
    column: str | int = "text"
    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not self.text:
            raise UserError("text is missing: name a source of passages, such as jsonl:lambada_test.jsonl")

    @property
    def names(self) -> tuple[str, ...]:
        return ("accuracy", "perplexity", "passages", "skipped")

    def check(self, data: EvaluationData) -> None:
        """Raise UserError for a task without next tokens, and for passages that cannot be read or have less than two words."""
        _check_config(data, "next_token")
        if not sum(1 for _ in self._passages(_documents(data, self.text, column=self.column, documents="line"))):
            raise UserError(f"text={self.text}: holds no passage of two words or more")

    def __call__(self, encoder: Any, data: EvaluationData) -> Records:
        _check(encoder, "next_token")
        tokenizer, context = data.test.info.tokenizer, encoder.task.model.context
        documents = _documents(data, self.text, column=self.column, documents="line")
        found = list(score(encoder, self._rows(documents, tokenizer, context), self.batch_size))
        if not found:
            raise UserError(f"text={self.text}: holds no passage of two words or more")
        yield over_examples("accuracy", np.array([right for _, _, right in found]), headline=True)
        mean = sum(nll for nll, _, _ in found) / len(found)
        yield Record("perplexity", _exp(mean), n=len(found), lower_is_better=True, headline=True)
        yield Record("passages", float(len(found)))
        if documents.skipped:
            yield Record("skipped", float(documents.skipped))

    @staticmethod
    def _passages(documents: Documents) -> Iterator[tuple[str, str]]:
        """Yield (passage, the same without its last word) of each document of two words or more."""
        for passage in whole_documents(documents):
            passage = passage.strip()
            before = passage.rpartition(" ")[0].rstrip()
            if before:
                yield passage, before

    def _rows(self, documents: Documents, tokenizer: Any, context: int) -> Iterator[tuple[list[int], int]]:
        for passage, before in self._passages(documents):
            ids, n = continuation(tokenizer, before, passage[len(before) :])
            ids = ids[-(context + 1) :]
            yield ids, min(n, len(ids) - 1)
