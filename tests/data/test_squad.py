"""Questions and windows: nothing of a paragraph is lost, and every answer is found again at its characters."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.text.squad import Question, cut, read_squad, squad, widest_context
from ssl_jax.data.text.tokenizers import ByteTokenizer
from ssl_jax.errors import UserError
from tests import tokenizer_toys as toys

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
TOKENIZER = ByteTokenizer(SPECIAL)
PAD, CLS, SEP = range(256, 259)


def article(*rows):
    """Rows are (id, question, context, [(start, text), ...])."""
    return {
        "paragraphs": [
            {"context": c, "qas": [{"id": i, "question": q, "answers": [{"answer_start": s, "text": t} for s, t in answers]}]}
            for i, q, c, answers in rows
        ]
    }


@pytest.fixture
def write(tmp_path):
    def write(*articles, name="squad.json"):
        (tmp_path / name).write_text(json.dumps({"version": "1.1", "data": list(articles)}))
        return f"squad:{tmp_path / name}"

    return write


@st.composite
def questions(draw):
    context = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60))
    start = draw(st.integers(0, len(context) - 1))
    end = draw(st.integers(start + 1, min(len(context), start + 5)))
    query = draw(st.text("abc?", min_size=1, max_size=12))
    return Question("q", query, context, ((start, context[start:end]),))


@settings(max_examples=100, deadline=None)
@given(questions(), st.integers(12, 40), st.integers(1, 8))
def test_windows_cover_the_context_and_find_the_answer(question, room, stride):
    """Every character lies in some window; where a window has a span, its characters are the answer's."""
    max_query = 8
    length = room + max_query + 3
    windows = cut((question,), TOKENIZER, length, stride, max_query)
    covered = set()
    for i in range(len(windows.tokens)):
        n, begin = int(windows.length[i]), int(windows.context[i])
        ids = windows.tokens[i]
        assert ids[0] == CLS and ids[begin - 1] == SEP and ids[n - 1] == SEP and np.all(ids[n:] == PAD)
        assert np.all(windows.offsets[i, :begin] == -1) and np.all(windows.offsets[i, n - 1 :] == -1)
        covered |= {int(a) for a, _ in windows.offsets[i, begin : n - 1]}
        if windows.start[i]:
            a, b = windows.offsets[i, windows.start[i], 0], windows.offsets[i, windows.end[i], 1]
            assert question.context[a:b] == question.answers[0][1]
    assert covered == set(range(len(question.context)))
    # every token counts in exactly one window
    total = len(question.context.encode())
    assert int(windows.widest.sum()) == total
    answer_bytes = len(question.answers[0][1].encode())
    assert windows.start.any() or answer_bytes > room - stride + 1


def test_an_answer_lies_in_each_window_that_holds_all_of_it():
    question = Question("q", "?", "abcdefghij", ((4, "ef"),))
    windows = cut((question,), TOKENIZER, max_length=5 + 1 + 3, doc_stride=2, max_query_length=1)  # room for 5
    # contexts abcde, cdefg, efghi, ghij; their first token is at place 3
    assert [(int(s), int(e)) for s, e in zip(windows.start, windows.end, strict=True)] == [(0, 0), (5, 6), (3, 4), (0, 0)]


def test_a_token_counts_where_it_has_most_context():
    widest = widest_context(7, 5, [0, 2])
    # token 2: 2 left and 2 right of it in the first window, 0 left in the second; token 4 the other way round
    assert widest.tolist() == [[True] * 4 + [False] * 3, [False] * 4 + [True] * 3]
    # token 3 has min(3, 1) = 1 in the first and min(1, 3) = 1 in the second: the first wins


def test_the_dataset(write):
    uri = write(article(("a", "Who?", "It was Ann.", [(7, "Ann")]), ("b", "Why?", "Nobody knows.", [])))
    section = dict(train=uri, test=uri, tokenizer=dict(name="bytes", special_tokens=SPECIAL), max_length=24, doc_stride=4,
                   max_query_length=8)  # fmt: skip
    data = squad(section, split="train", train=True)
    assert data.info.extra["version"] == "2.0" and data.size == 2
    batch = jax.jit(lambda raw: data.on_device(raw, None))(data.rows(np.arange(2)))
    assert list(batch["segments"].sum(axis=1)) == [18, 20]
    assert list(batch["answerable"].sum(axis=1)) == [1 + 11, 1 + 13]
    assert list(batch["start"]) == [6 + 7, 0] and list(batch["end"]) == [6 + 9, 0]
    assert data.source.describe(1).endswith("question b")
    for name, shape in data.info.shapes.items():
        assert batch[name].shape[1:] == shape.shape


def test_parts_split_by_article(write):
    uri = write(*(article((f"q{i}", "?", "text", [(0, "text")])) for i in range(5)))
    ids = lambda part: [q.id for q in read_squad(uri + part, check=True)[0]]
    assert ids("[:80%]") == ["q0", "q1", "q2", "q3"] and ids("[80%:]") == ["q4"]
    with pytest.raises(UserError, match="contains no questions"):
        ids("[:0%]")


def test_bad_files_are_told_in_one_line(write, tmp_path):
    uri = write(article(("good", "?", "It was Ann.", [(7, "Ann")]), ("bad", "?", "It was Ann.", [(6, "Ann")])))
    with pytest.raises(UserError, match="question bad: the answer 'Ann' is not at character 6 .* has ' An' there"):
        read_squad(uri, check=True)
    assert read_squad(uri, check=True, skip=True)[1] == 1
    assert len(read_squad(uri, check=False)[0]) == 2
    for content, message in (
        ("{", "is not JSON"),
        ('{"data": [{"x": 1}]}', "is not in the SQuAD format"),
        ("[1]", "is not in"),
    ):
        (tmp_path / f"{len(content)}.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_squad(f"squad:{tmp_path / f'{len(content)}.json'}", check=True)
    with pytest.raises(UserError, match="needs squad:FILE"):
        read_squad("tsv:x", check=True)


def test_a_stride_that_would_skip_words_is_refused(write):
    uri = write(article(("a", "?", "text", [(0, "text")])))
    with pytest.raises(UserError, match="doc_stride=50: must be at most max_length - max_query_length - 3 = 30"):
        squad(dict(train=uri, test=uri, max_length=97, doc_stride=50), split="train", train=True)


def test_questions_stand_as_the_tokenizer_joins_pairs():
    """RoBERTa has two separators between question and context, and one type for both."""
    question = Question("q", "the cat", "a dog sat on the mat", ((2, "dog sat"),))
    for tokenizer, between, context_type in ((toys.bert(), 1, 1), (toys.roberta(), 2, 0)):
        windows = cut((question,), tokenizer, max_length=40, doc_stride=8, max_query_length=12)
        ids, types = tokenizer.encode_pair(question.question, question.context)
        assert windows.tokens[0, : len(ids)].tolist() == ids
        begin, end = int(windows.context[0]), int(windows.context_end[0])
        assert ids[begin - between : begin] == [tokenizer.sep_id] * between and ids[end] == tokenizer.sep_id
        assert begin <= windows.start[0] <= windows.end[0] < end
        assert windows.context_type == context_type == types[-1]
    with pytest.raises(
        UserError, match="data.doc_stride=25: must be at most max_length - max_query_length - 4 special tokens = 24"
    ):
        cut((question,), toys.roberta(), max_length=40, doc_stride=25, max_query_length=12)
