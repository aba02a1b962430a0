"""The one reader of tables: what it reads, and the line it names for what it does not."""

import csv
import gzip
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.sources import load_source
from ssl_jax.data.sources.files import read_text, without_surrogates
from ssl_jax.data.sources.image_table import ImageTable
from ssl_jax.data.sources.tables import json_lines, separated, text_of
from ssl_jax.errors import UserError

LONG = "word " * 60_000  # longer than the csv module's own limit


def rows(tmp_path, text: str | bytes, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(separated("csv:x", str(path), **options))


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=6))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, table):
    buffer = io.StringIO()
    csv.writer(buffer).writerows(table)
    found = [row for _, row in rows(tmp_path_factory.mktemp("csv"), buffer.getvalue())]
    assert found == table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n\n3,4\n", [(1, ["a", "b"]), (2, ["1", "2"]), (4, ["3", "4"])]),
        ('a,b\n"x\ny",2\n3,4\n', [(1, ["a", "b"]), (2, ["x\ny", "2"]), (4, ["3", "4"])]),  # a row's line is its first
        ('a,b\n"say ""hi""",2\n', [(1, ["a", "b"]), (2, ['say "hi"', "2"])]),
        ('a,b\nsay "hi",2\n', [(1, ["a", "b"]), (2, ['say "hi"', "2"])]),  # quotes within an unquoted field are text
        ("\ufeffa,b\r\n1,2\r\n", [(1, ["a", "b"]), (2, ["1", "2"])]),
        ("a,b\r1,2\r", [(1, ["a", "b"]), (2, ["1", "2"])]),
        ("a,b\n1,", [(1, ["a", "b"]), (2, ["1", ""])]),
        (f"a,b\n1,{LONG}\n", [(1, ["a", "b"]), (2, ["1", LONG])]),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), [(1, ["a", "b"]), (2, ["1", "2"])]),
    ],
)
def test_csv(tmp_path, text, expected):
    assert rows(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,"x\n2,y\n3,z\n', "line 2 opens a quote that is never closed"),
        ('a,b\n1,"x\n' + "2,y\n" * 30_000, "line 2 opens a quote that is never closed"),
        ('a,b\n1,"x\n2,"y"\n', "line 2 has text after a closing quote (the quoted field continues to line 3)"),
        ('a,b\n1,"x"y\n', "line 2 has text after a closing quote;"),
        ("a,b\n1,x\rtail\n", "line 2 holds a carriage return within a field"),
        ("a,b\n1,2,3\n", "line 2 has 3 columns, expected 2 as in line 1; quote a field that holds the separator"),
        ("\na,b\n1,2\n3\n", "line 4 has 1 columns, expected 2 as in line 2"),
        ("", "is empty"),
        (" \n", "is empty"),
        (b"a,b\n1,\xff\n", "line 2 is not UTF-8 (byte 6 of the file)"),
        ("a,b\n".encode("utf-16"), "is not UTF-8 (it begins like UTF-16)"),
        (gzip.compress(b"a,b\n", mtime=0)[:-6], "is a damaged gzip file"),
    ],
)
def test_a_malformed_csv_is_one_line_with_the_place(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        rows(tmp_path, text)
    assert message in str(caught.value) and str(caught.value).startswith("csv:x: ")


def test_tsv_has_no_quotes(tmp_path):
    assert rows(tmp_path, 'a\tb\n"x\ty"\n', separator="\t", quotes=False) == [(1, ["a", "b"]), (2, ['"x', 'y"'])]
    with pytest.raises(UserError, match="line 2 has 3 columns, expected 2 as in line 1$"):
        rows(tmp_path, "a\tb\n1\t2\t3\n", separator="\t", quotes=False)


# JSON lines -----------------------------------------------------------------------------------------------------------


def objects(tmp_path, text: str):
    path = tmp_path / "table.jsonl"
    path.write_text(text)
    return list(json_lines("jsonl:x", str(path)))


def test_json_lines(tmp_path):
    text = '{"a": 1, "b": null}\n\n{"a": NaN, "b": [Infinity, 1]}\n{"a": "\\ud83d", "b": "\\ud83d\\ude00 \u2028"}\n'
    assert objects(tmp_path, text) == [
        (1, {"a": 1, "b": None}),
        (3, {"a": None, "b": [None, 1]}),
        (4, {"a": "\ufffd", "b": "\N{GRINNING FACE} \u2028"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is not JSON (Expecting value at character 7)"),
        ('[{"a": 1}]\n', "line 1 is \"[{'a': 1}]\", expected an object with keys"),
        ("{\n", "write one object per line"),
        ("[" * 100_000 + "\n", "line 1 is nested too deeply"),
    ],
)
def test_malformed_json_lines(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        objects(tmp_path, text)
    assert message in str(caught.value)


def test_cells_as_text():
    assert [text_of(value) for value in ("a", 1, 0.5, None, math.nan)] == ["a", "1", "0.5", None, None]
    for value in (True, ["a"], {"a": 1}):
        with pytest.raises(ValueError):
            text_of(value)


@given(st.text(st.characters(codec=None)))
def test_text_without_surrogates_can_be_encoded_and_is_else_unchanged(text):
    clean = without_surrogates(text)
    clean.encode("utf-8")
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert clean == text


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\nb".encode())
    assert read_text("text:a", str(tmp_path / "a.txt")) == "a\nb"


# Tables of images -----------------------------------------------------------------------------------------------------


def table(tmp_path, *lines, name="t.jsonl", **columns) -> ImageTable:
    path = tmp_path / name
    path.write_text("".join((json.dumps(line) if isinstance(line, dict) else line) + "\n" for line in lines))
    return load_source(f"{name.rpartition('.')[2]}:{path}", columns=columns or None)


def test_rows_of_one_image_are_one_example(tmp_path):
    source = table(tmp_path, "image,caption,label", "a.png, x ,", "b.png,y,dog", "a.png,z,cat", ",w,dog", ",v,", name="t.csv")
    assert len(source) == 4 and source.classes == ("cat", "dog") and source.labels().tolist() == [0, 1, 1, -1]
    assert [source.captions(i) for i in range(4)] == [("x", "z"), ("y",), ("w",), ("v",)]
    assert source.describe(2).endswith("t.csv: line 5")
    with pytest.raises(UserError, match="line 5 names no image; fix it"):
        source[2]
    with pytest.raises(UserError, match="line 4: a.png has the label 'dog', but 'cat' in line 2"):
        table(tmp_path, "image,label", "a.png,cat", "b.png,cat", "a.png,dog", name="u.csv")


def test_a_row_of_several_lines_is_pointed_out(tmp_path):
    """Two quotes that are not closed may swallow the rows between them, and look like one long caption."""
    source = table(tmp_path, "image,caption", 'a.png,"a dog', "b.png,a cat", 'c.png,27"', "d.png,e", name="t.csv")
    assert len(source) == 2 and source.remarks() == (
        "the row of line 2 continues to line 4; if it should not, a quote is not closed there",
    )
    assert table(tmp_path, "image,caption", "a.png,b", name="u.csv").remarks() == ()


def test_captions_that_are_null_are_none(tmp_path):
    source = table(tmp_path, {"image": "a.png", "caption": [None, "a cat", math.nan, " "]}, {"image": "b.png", "caption": None})
    assert source.captions(0) == ("a cat",) and source.captions(1) == ()
    for value, shown in (({"en": "a"}, "{'en': 'a'}"), (True, "'True'")):
        with pytest.raises(UserError, match="line 1: caption is .*expected text") as caught:
            table(tmp_path, {"image": "a.png", "caption": value})
        assert shown in str(caught.value)


def test_labels_are_ordered_as_numbers_where_they_are_numbers(tmp_path):
    source = table(tmp_path, *({"image": f"{i}.png", "label": label} for i, label in enumerate([10, "9", 2, None])))
    assert source.classes == ("2", "9", "10") and source.labels().tolist() == [2, 1, 0, -1]
    names = table(tmp_path, *({"image": f"{i}.png", "label": label} for i, label in enumerate(["b", " a", "b ", True])))
    assert names.classes == ("True", "a", "b") and names.labels().tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(image="where"), "there is no column 'where', only 'picture', 'caption', 'caption'; set data.columns"),
        (dict(image="pictur"), "did you mean 'picture'?"),
        (dict(image="picture", text="caption"), "has 2 columns called 'caption'; rename all but one"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, columns, message):
    with pytest.raises(UserError) as caught:
        table(tmp_path, "picture,caption,caption", "a,b,c", name="t.csv", **columns)
    assert message in str(caught.value)


def test_a_table_without_images_is_text(tmp_path):
    source = table(tmp_path, "sentence,label", '"a, b",1', name="t.csv")
    assert source[0] == {"sentence": "a, b", "label": "1"} and source.describe(0).endswith("line 2")
