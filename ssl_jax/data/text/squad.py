"""Questions on paragraphs in the SQuAD format, split into overlapping windows (Devlin et al. 2019, section 4.2)."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from ssl_jax.config import read
from ssl_jax.data.pipeline import Dataset
from ssl_jax.data.sources import Source, digest
from ssl_jax.data.sources.files import read_text, without_surrogates
from ssl_jax.data.text.supervised import TextSettings, in_memory, tokenizer_of
from ssl_jax.data.text.tokenizers import Tokenizer
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo


@dataclasses.dataclass(frozen=True)
class Question:
    """One question; `answers` holds (text, its first character in `context`) of each correct answer, () if there is none."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True)
class Squad(TextSettings):
    """`config.data` of the kind "squad". A source is squad:FILE, or squad:FILE[:80%] and squad:FILE[80%:] by article."""

    max_length: int = 384  # of a window: question, context and special tokens
    doc_stride: int = 128  # from one window's context to the next
    max_query_length: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.doc_stride < 1:
            raise UserError(f"doc_stride={self.doc_stride}: must be at least 1")
        if self.max_query_length < 1:
            raise UserError(f"max_query_length={self.max_query_length}: must be at least 1")
        if self.doc_stride > self.max_length - self.max_query_length - 3:
            raise UserError(
                f"doc_stride={self.doc_stride}: must be at most max_length - max_query_length - 3 = "
                f"{self.max_length - self.max_query_length - 3}, or words between two windows would be lost"
            )


@dataclasses.dataclass
class Windows:
    """Windows over all questions, in their order: [CLS] question [SEP] part of the context [SEP].

    `offsets[i, t]` is the half-open range of characters of token t in the context, (-1, -1) outside of it; `widest` is
    True if no other window contains the token with more surrounding context.
    """

    tokens: Int[np.ndarray, "windows length"]
    length: Int[np.ndarray, "windows"]
    context: Int[np.ndarray, "windows"]  # the context's first token
    context_end: Int[np.ndarray, "windows"]
    question: Int[np.ndarray, "windows"]  # the number of the question
    offsets: Int[np.ndarray, "windows length 2"]
    widest: Bool[np.ndarray, "windows length"]
    start: Int[np.ndarray, "windows"]  # the answer's first and last token; 0 if the window does not contain all of it
    end: Int[np.ndarray, "windows"]
    truncated: int  # number of truncated questions
    context_type: int  # token type of the context and the tokens after it: 1, or 0 if the tokenizer has one type (RoBERTa)


@dataclasses.dataclass(frozen=True)
class SquadSource(Source):
    """The windows as a source, with their questions."""

    name: str
    questions: tuple[Question, ...]
    windows: Windows

    def __len__(self) -> int:
        return len(self.windows.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return vars(self.questions[self.windows.question[index]])

    def describe(self, index: int) -> str:
        return f"{self.name}: question {self.questions[self.windows.question[index]].id}"

    def fingerprint(self) -> str:
        return digest(repr(question).encode("utf-8", "surrogatepass") for question in self.questions)


def squad(section: Any, *, split: str, train: bool, task_section=None, workdir=None) -> Dataset:
    """Return the Dataset of windows: {"tokens", "segments", "token_types", "answerable" i32[T], "start" i32[], "end" i32[]}.

    "answerable" is 1 where an answer may begin or end: on the context, and on the first token, which means no answer.
    `info.extra["version"]` is "2.0" if some questions of either split have no answer, else "1.1".
    """
    settings = read(Squad, section, "data")
    uri = settings.uri(split)
    questions, skipped = read_squad(uri, check=split == "train", skip=settings.on_bad_example == "skip")
    tokenizer = tokenizer_of(settings.tokenizer, workdir, lambda: _texts(settings.train))
    windows = cut(questions, tokenizer, settings.max_length, settings.doc_stride, settings.max_query_length)
    others = read_squad(settings.uri("test" if split == "train" else "train"), check=False)[0]
    version = "1.1" if all(q.answers for q in (*questions, *others)) else "2.0"
    shapes = {
        n: jax.ShapeDtypeStruct((settings.max_length,), jnp.int32) for n in ("tokens", "segments", "token_types", "answerable")
    }
    shapes |= {name: jax.ShapeDtypeStruct((), jnp.int32) for name in ("start", "end")}
    extra = {"version": version, "truncated": windows.truncated, "skipped": skipped}
    info = DataInfo(shapes=shapes, tokenizer=tokenizer, extra=extra)
    return windows_dataset(SquadSource(uri, questions, windows), info, settings)


def windows_dataset(source: SquadSource, info: DataInfo, settings: TextSettings | None = None) -> Dataset:
    """Return the Dataset of the windows of a source."""
    windows = source.windows
    arrays = {name: getattr(windows, name) for name in ("tokens", "length", "context", "context_end", "start", "end")}
    on_device = functools.partial(_on_device, context_type=windows.context_type)
    return in_memory(info, arrays, source, on_device, settings or TextSettings("", ""))


def _texts(uri: str):
    for question in read_squad(uri, check=False)[0]:
        yield question.question
        yield question.context


def _on_device(raw: Mapping[str, Any], keys, *, context_type: int) -> dict[str, Any]:
    tokens = raw["tokens"].astype(jnp.int32)
    place = jnp.arange(tokens.shape[1])[None]
    begin, end, length = (raw[name][:, None] for name in ("context", "context_end", "length"))
    context = (place >= begin) & (place < end)
    rest = {name: value for name, value in raw.items() if name in ("start", "end")}
    return {
        "tokens": tokens,
        "segments": (place < length).astype(jnp.int32),
        "token_types": context_type * ((place >= begin) & (place < length)).astype(jnp.int32),
        "answerable": (context | (place == 0)).astype(jnp.int32),
        **rest,
    }


# Reading ------------------------------------------------------------------------------------------------------------

_PART = re.compile(r"(.*)\[(?:(\d+)%)?:(?:(\d+)%)?\]$")


@functools.lru_cache(maxsize=8)
def read_squad(uri: str, *, check: bool, skip: bool = False) -> tuple[tuple[Question, ...], int]:
    """Return the questions of squad:FILE, and the number of those skipped because an answer is not at its answer_start.

    With `check`, such an answer is a UserError, or its question is skipped with `skip`. "[:80%]" and "[80%:]" select a part of
    the articles, so that no paragraph is in both.
    """
    scheme, _, path = uri.partition(":") if isinstance(uri, str) else ("", "", "")
    if scheme != "squad":
        raise UserError(f"{uri!r}: question answering needs squad:FILE, a JSON file in the SQuAD format")
    part = _PART.match(path)
    if part:
        path = part[1]
    text = read_text(uri, path)
    try:
        articles = json.loads(text)["data"]
        questions = [list(_questions(article)) for article in articles]
    except json.JSONDecodeError as error:
        raise UserError(f"{uri}: is not JSON (line {error.lineno}: {error.msg})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{uri}: is not in the SQuAD format (data > paragraphs > qas > answers): {error!r}") from None
    if part:
        low, high = (round(len(questions) * int(p or d) / 100) for p, d in ((part[2], 0), (part[3], 100)))
        questions = questions[low:high]
    questions = [q for article in questions for q in article]
    if not questions:
        raise UserError(f"{uri}: contains no questions; name a file with some")
    kept, skipped = [], 0
    for question in questions:
        wrong = next((a for a in question.answers if question.context[a[0] : a[0] + len(a[1])] != a[1]), None)
        if check and wrong is not None:
            if not skip:
                start, answer = wrong
                found = question.context[start : start + len(answer)]
                raise UserError(
                    f"{uri}: question {question.id}: the answer {answer!r} is not at character {start} of its paragraph, which "
                    f'has {found!r} there; correct answer_start or set data.on_bad_example="skip"'
                )
            skipped += 1
            continue
        kept.append(question)
    if not kept:
        raise UserError(f"{uri}: none of its {len(questions):,} questions has its answer at answer_start; correct the file")
    return tuple(kept), skipped


def _questions(article: dict):
    for paragraph in article["paragraphs"]:
        for qa in paragraph["qas"]:
            answers = () if qa.get("is_impossible") else qa.get("answers", ())
            answers = tuple((int(a["answer_start"]), without_surrogates(str(a["text"]))) for a in answers if a["text"])
            question, context = (without_surrogates(str(text)) for text in (qa["question"], paragraph["context"]))
            yield Question(str(qa["id"]), question, context, answers)


# Windows ------------------------------------------------------------------------------------------------------------


def cut(
    questions: tuple[Question, ...], tokenizer: Tokenizer, max_length: int, doc_stride: int, max_query_length: int
) -> Windows:
    """Return all windows of all questions. The first answer is the target; an answer without a token counts as none."""
    before, middle, after, context_type = _marks(tokenizer)
    special = len(before) + len(middle) + len(after)
    if doc_stride > max_length - max_query_length - special:
        raise UserError(
            f"data.doc_stride={doc_stride}: must be at most max_length - max_query_length - {special} special tokens = "
            f"{max_length - max_query_length - special}, or words between two windows would be lost"
        )
    asked = tokenizer.encode_batch([q.question for q in questions])
    truncated = sum(len(ids) > max_query_length for ids in asked)
    contexts = {q.context: None for q in questions}
    for context in contexts:
        contexts[context] = tokenizer.encode_with_offsets(context)
    rows: list[tuple] = []
    for number, (question, query) in enumerate(zip(questions, asked, strict=True)):
        head = [*before, *query[:max_query_length], *middle]
        ids, offsets = contexts[question.context]
        length = max_length - len(head) - len(after)
        starts = _window_starts(len(ids), length, doc_stride)
        widest = widest_context(len(ids), length, starts)
        span = answer_tokens(offsets, question)
        for window, begin in enumerate(starts):
            stop = min(begin + length, len(ids))
            inside = span is not None and begin <= span[0] and span[1] < stop
            answer = tuple(t - begin + len(head) for t in span) if inside else (0, 0)
            rows.append(
                (number, [*head, *ids[begin:stop], *after], len(head), offsets[begin:stop], widest[window, begin:stop], answer)
            )
    tokens = np.full((len(rows), max_length), tokenizer.pad_id or 0, np.int32)
    offsets = np.full((len(rows), max_length, 2), -1, np.int32)
    widest = np.zeros((len(rows), max_length), bool)
    for i, (_, ids, begin, places, wide, _) in enumerate(rows):
        tokens[i, : len(ids)] = ids
        if len(places):
            offsets[i, begin : begin + len(places)] = places
            widest[i, begin : begin + len(places)] = wide
    column = lambda values: np.array(list(values), np.int32)
    return Windows(
        tokens=tokens, length=column(len(r[1]) for r in rows), context=column(r[2] for r in rows),
        context_end=column(len(r[1]) - len(after) for r in rows), context_type=context_type,
        question=column(r[0] for r in rows), offsets=offsets, widest=widest, start=column(r[5][0] for r in rows),
        end=column(r[5][1] for r in rows), truncated=truncated,
    )  # fmt: skip


def _marks(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Return the special tokens before the question, before the context and after it, and the context's token type.

    BERT: [CLS] question [SEP] context [SEP]; RoBERTa: <s> question </s></s> context </s>, all of type 0.
    """
    template = tokenizer.template(pair=True)
    first = tokenizer.cls_id if tokenizer.cls_id is not None else tokenizer.bos_id
    sep = tokenizer.sep_id if tokenizer.sep_id is not None else tokenizer.eos_id
    before = template.between(None, "a") or (() if first is None else (first,))
    middle, after = (template.between(*ends) or (() if sep is None else (sep,)) for ends in (("a", "b"), ("b", None)))
    if not before or not middle or not after:
        raise UserError("data.tokenizer: question answering needs [CLS] and [SEP]; add them to data.tokenizer.special_tokens")
    return before, middle, after, dict(template.parts)["b"]


def _window_starts(tokens: int, length: int, stride: int) -> list[int]:
    """Return the first token of each window of at most `length` tokens, until one reaches the end."""
    starts = [0]
    while starts[-1] + length < tokens:
        starts.append(starts[-1] + stride)
    return starts


def widest_context(tokens: int, length: int, starts: list[int]) -> Bool[np.ndarray, "windows tokens"]:
    """Return True for a token in the window with the largest min(tokens left, tokens right) + 0.01 x the window's length, the
    first of equal ones (the rule of BERT's run_squad.py)."""
    place = np.arange(tokens)[None]
    begin = np.array(starts)[:, None]
    stop = np.minimum(begin + length, tokens)
    score = np.minimum(place - begin, stop - 1 - place) + 0.01 * (stop - begin)
    score = np.where((place >= begin) & (place < stop), score, -np.inf)
    best = np.argmax(score, axis=0) if tokens else np.zeros(0, int)
    return np.arange(len(starts))[:, None] == best[None]


def answer_tokens(offsets: list[tuple[int, int]], question: Question) -> tuple[int, int] | None:
    """Return the first and last token that overlap the question's first answer."""
    if not question.answers:
        return None
    start, text = question.answers[0]
    touching = [i for i, (a, b) in enumerate(offsets) if a < start + len(text) and b > start]
    return (touching[0], touching[-1]) if touching else None
