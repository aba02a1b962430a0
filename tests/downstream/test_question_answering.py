"""Answers from scores of windows, and the task that makes the scores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ssl_jax.data.text.squad import Question, cut, squad
from ssl_jax.data.text.tokenizers import ByteTokenizer
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.supervised.question_answering import QuestionAnswering, QuestionAnsweringMetrics
from ssl_jax.downstream.supervised.spans import answers, likeliest_sentence
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream import text_toys as toys
from tests.keys import toy_key

TOKENIZER = ByteTokenizer(toys.SPECIAL)


def question(context, answer=None, name="q", asked="?"):
    return Question(name, asked, context, () if answer is None else ((context.index(answer), answer),))


# Spans ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 25), st.integers(1, 8))
def test_the_best_span_is_that_of_an_exhaustive_search(seed, length, longest):
    """Over all windows, all pairs of starts and ends, where n_best leaves nothing out."""
    random = np.random.default_rng(seed)
    asked = question("".join(random.choice(list("abcdefgh "), length)))
    windows = cut((asked,), TOKENIZER, 5 + 8, 3, 5)
    start, end = random.normal(size=(2, *windows.tokens.shape)).astype(np.float32)
    best, where = -np.inf, None
    for i in range(len(windows.tokens)):
        for a in range(windows.tokens.shape[1]):
            for b in range(a, min(a + longest, windows.tokens.shape[1])):
                (first, _), (_, last) = windows.offsets[i, a], windows.offsets[i, b]
                if first < 0 or last < 0 or not windows.widest[i, a] or not asked.context[first:last].strip():
                    continue
                if start[i, a] + end[i, b] > best:
                    best, where = start[i, a] + end[i, b], asked.context[first:last].strip()
    found = answers((asked,), windows, start, end, n_best=100, max_answer_length=longest)[0]
    assert (found.spans[0].text if found.spans else None) == where
    if where is not None:
        assert found.spans[0].score == pytest.approx(best, rel=1e-6)
    assert found.null == pytest.approx(min(start[:, 0] + end[:, 0]), rel=1e-6)
    texts = [s.text for s in found.spans]
    assert len(texts) == len(set(texts)) and [s.score for s in found.spans] == sorted(
        (s.score for s in found.spans), reverse=True
    )


def test_no_answer_wins_above_the_threshold_only():
    asked = question("ab cd", "cd")
    windows = cut((asked,), TOKENIZER, 16, 4, 4)
    start = np.full(windows.tokens.shape, -5.0, np.float32)
    end = start.copy()
    place = int(windows.context[0])
    start[0, place + 3], end[0, place + 4], start[0, 0], end[0, 0] = 2.0, 2.0, 3.0, 3.0
    found = answers((asked,), windows, start, end)[0]
    assert found.doubt == pytest.approx(2.0)
    assert (found.text(), found.text(1.9), found.text(2.1)) == ("cd", "", "cd")
    probabilities = dict(found.probabilities(True))
    assert sum(probabilities.values()) == pytest.approx(1) and max(probabilities, key=probabilities.get) == ""
    assert probabilities[""] / probabilities["cd"] == pytest.approx(np.exp(2.0), rel=1e-5)


def test_the_likeliest_sentence():
    text = "Ann wrote a book. Bob read the book in Rome! Who knows?"
    assert likeliest_sentence(question(text, asked="Where did Bob read?")) == "Bob read the book in Rome!"


# The task -------------------------------------------------------------------------------------------------------------


def file(tmp_path, rows, name="s.json"):
    paragraphs = [
        {"context": q.context, "qas": [{"id": q.id, "question": q.question,
                                        "answers": [{"answer_start": s, "text": t} for s, t in q.answers]}]}
        for q in rows
    ]  # fmt: skip
    (tmp_path / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return f"squad:{tmp_path / name}"


def finders(tmp_path, count=40, empty=0):
    """Where is the digit? Contexts of letters with one digit in them, or (`empty`) with none."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        letters = list(random.choice(list("abcd"), 20))
        if i >= empty:
            letters[random.integers(20)] = digit = str(random.integers(10))
        rows.append(question("".join(letters), digit if i >= empty else None, f"q{i}", "digit?"))
    section = dict(train=file(tmp_path, rows), tokenizer=toys.BYTES, max_length=24, doc_stride=6, max_query_length=6)
    section["test"] = section["train"]
    return squad(section, split="train", train=True), squad(section, split="test", train=False)


def build(info, **task):
    model = dict(dropout=0.0, depth=1) | task.pop("model", {})
    return QuestionAnswering.from_config(toys.config(dict(name="question_answering") | task, **model), info)


def test_only_the_context_and_the_first_token_can_be_an_answer(tmp_path):
    train, _ = finders(tmp_path)
    task, batch = build(train.info), toys.batch_of(train)
    params = jax.jit(task.init)(toy_key(0), batch)
    found = jax.jit(task.features)(params, batch)
    for name in ("start_logits", "end_logits"):
        np.testing.assert_array_equal(np.asarray(found[name]) > -1e8, np.asarray(batch["answerable"]) > 0)
    loss, metrics = jax.jit(lambda p, b: task.loss(p, b, jax.random.key(0), train=False))(params, batch)
    expected = 0.0
    for name in ("start", "end"):
        logp = jax.nn.log_softmax(found[f"{name}_logits"])
        expected -= float(jnp.mean(jnp.take_along_axis(logp, batch[name][:, None], axis=1))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("empty", [pytest.param(0, marks=pytest.mark.slow), 10])
def test_it_learns_to_find_answers_over_windows(tmp_path, empty):
    train, test = finders(tmp_path, empty=empty)
    task, batch = build(train.info), toys.batch_of(train, train.size)
    assert train.size > 40  # more windows than questions
    params = jax.jit(task.init)(toy_key(0), batch)
    optimizer = optax.adam(2e-2)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0), train=True)[0])(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(80):
        params, state = step(params, state)
    data = EvaluationData(train, test, workdir=str(tmp_path))
    found = flat(QuestionAnsweringMetrics(batch_size=32)(Encoder(task, params), data))
    assert found["exact_match"] == 100 and found["f1"] == 100
    assert found["likeliest_sentence/exact_match"] < 50
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert predictions == {q.id: q.answers[0][1] if q.answers else "" for q in test.source.questions}
    nbest = json.loads((tmp_path / "nbest_predictions.json").read_text())
    assert all(sum(a["probability"] for a in rows) == pytest.approx(1) for rows in nbest.values())
    if empty:
        assert found["no_answer/exact_match"] == 100 and found["best_f1"] == 100
    lines = task.panels(params, toys.batch_of(train, 2), jax.random.key(0))["answers"].lines
    assert all("[[" in line for line in lines)


def test_other_data_is_refused(tmp_path):
    train, _ = toys.data(tmp_path)
    squad_train, _ = finders(tmp_path)
    encoder = Encoder(build(squad_train.info), {})
    with pytest.raises(UserError, match="is measured on squad:FILE"):
        next(QuestionAnsweringMetrics()(encoder, EvaluationData(train, train)))
    with pytest.raises(UserError, match="task.dropout=2.0: must lie in"):
        QuestionAnswering.from_config(ConfigDict(dict(task=dict(dropout=2.0), model=toys.MODEL)), squad_train.info)


def test_scores_that_are_not_finite_are_refused():
    asked = question("the cat sat on the mat", "cat")
    windows = cut((asked,), TOKENIZER, 40, 3, 5)
    good, bad = np.zeros(windows.tokens.shape, np.float32), np.full(windows.tokens.shape, np.nan, np.float32)
    for start, end, which in ((bad, good, "start"), (good, bad, "end")):
        with pytest.raises(UserError, match=f"{which} scores of 1 of 1 examples are NaN"):
            answers((asked,), windows, start, end)
    with pytest.raises(ValueError, match="scores of 2 and 1 windows, expected 1"):
        answers((asked,), windows, np.concatenate([good, good]), good)
