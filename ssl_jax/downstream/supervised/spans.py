"""From scores of windows to answers: n-best spans of a question over all its windows (Devlin et al. 2019, section 4.2)."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssl_jax.data.text.squad import Question, Windows
from ssl_jax.downstream.metrics.classification import check_finite
from ssl_jax.downstream.metrics.squad import normalize_answer


@dataclasses.dataclass(frozen=True)
class Span:
    """An answer: its characters in the context, and start score + end score."""

    start: int
    end: int
    score: float
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The best spans of one question, best first, and the score of there being no answer (of its least sure window)."""

    spans: tuple[Span, ...]
    null: float

    @property
    def doubt(self) -> float:
        """How much better "no answer" scores than the best span; a question is left unanswered above a threshold of it."""
        return self.null - self.spans[0].score if self.spans else np.inf

    def text(self, null_threshold: float | None = None) -> str:
        """The best text; "" for no answer, where a threshold allows it."""
        if not self.spans or (null_threshold is not None and self.doubt > null_threshold):
            return ""
        return self.spans[0].text

    def probabilities(self, with_null: bool) -> list[tuple[str, float]]:
        """(text, softmax of the scores) of the n best, "" among them where no answer is possible."""
        scored = [(span.text, span.score) for span in self.spans] + ([("", self.null)] if with_null or not self.spans else [])
        scored.sort(key=lambda pair: -pair[1])
        weights = np.exp(np.array([score for _, score in scored]) - scored[0][1])
        return [(text, float(w)) for (text, _), w in zip(scored, weights / weights.sum(), strict=True)]


def answers(
    questions: Sequence[Question],
    windows: Windows,
    start_logits: Float[np.ndarray, "windows length"],
    end_logits: Float[np.ndarray, "windows length"],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[Answer]:
    """The answer to each question: spans between the `n_best` starts and ends of each window.

    A span lies in the context, has at most `max_answer_length` tokens, and begins where no other window shows its first
    token with more context. Spans of the same text count once, with their best score. Raises UserError for scores that are
    not finite, and ValueError where there are not as many as windows.
    """
    if not len(start_logits) == len(end_logits) == len(windows.question):
        raise ValueError(f"scores of {len(start_logits)} and {len(end_logits)} windows, expected {len(windows.question)}")
    check_finite(start_logits, "start scores"), check_finite(end_logits, "end scores")
    found: list[list[Span]] = [[] for _ in questions]
    null = np.full(len(questions), np.inf)
    for i, number in enumerate(windows.question):
        null[number] = min(null[number], start_logits[i, 0] + end_logits[i, 0])
        inside = windows.offsets[i, :, 0] >= 0
        starts = _best(np.where(inside & windows.widest[i], start_logits[i], -np.inf), n_best)
        ends = _best(np.where(inside, end_logits[i], -np.inf), n_best)
        length = ends[None] - starts[:, None] + 1
        context = questions[number].context
        for a, b in np.argwhere((length >= 1) & (length <= max_answer_length)):
            first, last = int(windows.offsets[i, starts[a], 0]), int(windows.offsets[i, ends[b], 1])
            score = float(start_logits[i, starts[a]] + end_logits[i, ends[b]])
            found[number].append(Span(first, last, score, context[first:last].strip()))
    return [Answer(_distinct(spans, n_best), float(null[i])) for i, spans in enumerate(found)]


def _best(scores: Float[np.ndarray, "length"], n: int) -> np.ndarray:
    """Places of the `n` largest finite scores, falling; the first among equals."""
    order = np.argsort(-scores, kind="stable")[:n]
    return order[np.isfinite(scores[order])]


def _distinct(spans: list[Span], n: int) -> tuple[Span, ...]:
    best: dict[str, Span] = {}
    for span in sorted(spans, key=lambda s: -s.score):
        if span.text and span.text not in best:
            best[span.text] = span
            if len(best) == n:
                break
    return tuple(best.values())


def likeliest_sentence(question: Question) -> str:
    """The sentence of the context that shares most words with the question, the first among equals: a baseline."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", question.context) if s.strip()] or [question.context]
    asked = set(normalize_answer(question.question).split())
    return max(sentences, key=lambda s: len(asked & set(normalize_answer(s).split())))
