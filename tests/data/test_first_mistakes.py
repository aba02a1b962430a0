"""Data as a newcomer brings them: each is read with the right numbers, or refused in one line that says what to do."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.commands import list_sources
from ssl_jax.data.images.settings import ImageDataSettings
from ssl_jax.data.inspection import inspect
from ssl_jax.data.sources import BadExample, load_source
from ssl_jax.data.sources.text_columns import read_table
from ssl_jax.data.text.corpus_files import open_documents
from ssl_jax.data.text.lines import text_rows
from ssl_jax.data.text.supervised import labelled_text
from ssl_jax.downstream.evaluation import Evaluation
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.downstream.metrics.classification import check_labels
from ssl_jax.downstream.supervised.classification import Classification
from ssl_jax.errors import UserError
from tests.downstream import text_toys


def written(path, text):
    path.write_text(text)
    return f"{path.suffix[1:]}:{path}"


def images(uri):
    return ImageDataSettings(train=uri, batch_size=1).open(uri)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path;label\na.png;cat\n", "its columns are separated by ';'; separate them by commas"),
        ("a.tsv", "path|label\na.png|cat\n", r"its columns are separated by '\|'"),
        ("b.csv", "a.png,cat\nb.jpg,dog\n", "its first line must name the columns, such as path,label"),
        (
            "c.csv",
            "picture,kind\na,cat\n",
            r"the column of images is unknown \(columns: 'picture', 'kind'\); set data.columns.image",
        ),
        ("a.jsonl", '[{"path": "a.png"}]\n', "it is one JSON array: write each of its objects on a line of its own"),
    ],
)
def test_a_table_of_images_without_the_expected_columns(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        images(written(tmp_path / name, text))


def test_text_is_refused_where_images_are_read_and_images_where_text_is(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n")
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 2, 2), np.uint8), label=np.arange(4) % 2)
    for uri in (f"text:{tmp_path}/a.txt", f"text:{tmp_path}/*.txt"):
        with pytest.raises(UserError, match="holds text, and this task reads images"):
            images(uri)
        with pytest.raises(UserError, match="holds text without labels; a table has both"):
            read_table(uri, {"text": "text", "label": "label"})
    with pytest.raises(UserError, match="holds images, and this task reads text"):
        read_table(f"npz:{tmp_path / 'a.npz'}", {"text": "text", "label": "label"})
    for uri in ("parallel:a.en,a.de", "trec:TREC.train"):
        with pytest.raises(UserError, match="holds text with targets, which this task does not read"):
            load_source(uri)
    with pytest.raises(UserError, match=r"unknown scheme 'excel'\. Valid names are bundled"):
        load_source("excel:a.xlsx")


def test_paths_that_no_file_can_have_are_explained(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "in" / "a.png")
    table = load_source(written(tmp_path / "a.csv", "path,label\nin\\a.png,x\nhttps://example.org/a.png,y\nin/b.png,y\n"))
    for index, message in ((0, 'write "/" instead of "\\" in paths'), (1, "exist: https://example.org/a.png; download it"),
                           (2, "in/b.png; fix it")):  # fmt: skip
        with pytest.raises(BadExample, match=re.escape(message)):
            table[index]


def test_arrays_of_keras_and_labels_from_one_on(tmp_path):
    x, y = np.zeros((4, 2, 2), np.uint8), np.array([1, 2, 1, 2])
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    with pytest.raises(UserError, match='holds x_train, y_train, x_test, y_test; write one file for each split, with "image"'):
        load_source(f"npz:{tmp_path / 'mnist.npz'}")
    with pytest.raises(UserError, match="no example of class 0; .*; if the labels count from 1, subtract 1"):
        check_labels(y, y)
    with pytest.raises(UserError, match="no example of class 1; remove the class or add examples$"):
        check_labels(np.array([0, 2]), np.array([0, 2]))


def test_class_numbers_that_pandas_wrote_as_floats_are_class_numbers(tmp_path, monkeypatch):
    """An integer column with missing values is one of floats in pandas."""
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    cells = [(tmp_path / "a.png").read_bytes()] * 4
    of = lambda name, labels: pq.write_table(
        pyarrow.table({"image": cells, "label": labels, "id": [1, 2, 3, 4]}), tmp_path / name
    )
    of("a.parquet", [10.0, 2.0, float("nan"), None])
    source = load_source(f"parquet:{tmp_path / 'a.parquet'}")
    assert source.classes == ("2", "10") and source.labels().tolist() == [1, 0, -1, -1]
    assert "columns that are not read: id" in inspect(source.name)
    for name, labels in (("b.parquet", [0.5, 2.0, 1.0, None]), ("c.parquet", [float("inf"), 2.0, 1.0, None])):
        of(name, labels)
        with pytest.raises(UserError, match="column 'label' is double, expected one class"):
            load_source(f"parquet:{tmp_path / name}")


@pytest.mark.parametrize(
    "rows", ["a b,x\nc d,y\n", "".join(f"word {i},{i / 7:.3f}\n" for i in range(9)), "same,x\nsame,x\nx,y\n"]
)
def test_texts_of_which_none_can_be_held_out(tmp_path, rows):
    """Two examples; a class each, as of numbers to be predicted; equal texts."""
    settings = text_toys.section(written(tmp_path / "a.csv", "text,label\n" + rows))
    with pytest.raises(UserError, match="data.held_out=0.1 holds out none of its . texts: each class has only one text"):
        labelled_text({name: value for name, value in settings.items() if name != "test"}, split="train", train=True)


def test_inspecting_a_table_of_texts_counts_its_classes(tmp_path):
    uri = written(tmp_path / "a.csv", 'text,label\nx,good\ny,bad\nz,good\n"a, b",\n')
    assert "  classes   2: bad, good\n  labels    1 to 2 examples per class, 1 examples without one\n" in inspect(uri)
    uri = written(tmp_path / "b.jsonl", '{"text": "x", "label": ["r", "g"]}\n{"text": "y", "label": []}\n')
    assert "1 to 1 examples per class, 0 to 2 classes per example" in inspect(uri, label_separator=",")
    assert "labels    cannot be read: " in inspect(uri) and "for several set data.label_separator" in inspect(uri)
    assert "columns a;b; its columns are separated by ';'" in inspect(written(tmp_path / "c.csv", "a;b\n1;2\n"))
    assert "columns said, meant; name those to read by data.columns" in inspect(
        written(tmp_path / "d.csv", "said,meant\n1,2\n")
    )


def test_text_with_targets_is_listed_and_inspected(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "t").write_text("NUM:count How many ?\nHUM:ind Who ?\nNUM:date When ?\n")
    found = inspect(f"parallel:{tmp_path / 'a.en'},{tmp_path / 'a.de'}")
    assert "kind      parallel text\n  examples  2\n" in found and "target    'eins'" in found
    assert "examples  3\n  classes   2: HUM, NUM\n  labels    1 to 2 examples per class" in inspect(f"trec:{tmp_path / 't'}")
    assert "parallel:SOURCE,TARGET" in list_sources() and "trec:FILE" in list_sources()


def test_a_single_class_folder_trains_a_pretext_task_and_no_classifier(tmp_path):
    (tmp_path / "photos" / "2023").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (4, 4), (60 * i, 0, 0)).save(tmp_path / "photos" / "2023" / f"{i}.png")
    data, lines = build("images", dict(train=f"folder:{tmp_path / 'photos'}", batch_size=2, image_size=4)), []
    evaluation = Evaluation(
        dict(knn=KNN(), linear_probe=LinearProbe()), None, EvaluationData(data, data, log=lines.append), lambda sources: data
    )
    evaluation.check()
    assert lines == [
        f"{name}: skipped, folder:{tmp_path / 'photos'} has a single class (2023)" for name in ("knn", "linear_probe")
    ]
    assert evaluation.measured == ()
    with pytest.raises(UserError, match=r"data.train: has a single class \(2023\); classification needs at least two"):
        Classification.from_config(ConfigDict(dict(task=dict(name="classification"))), data.info)


def test_an_evaluator_that_cannot_run_says_how_to_omit_it():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    from tests.downstream.downstream_toys import dataset

    data = dataset(images, np.arange(6) % 2, ("a", "b"))
    evaluation = Evaluation(dict(knn=KNN(k=9)), None, EvaluationData(data, data), lambda sources: data)
    with pytest.raises(
        UserError, match="downstream.knn: k=9: there are only 5 .*; lower k; --config.downstream.knn=None omits"
    ):
        evaluation.check()


def test_a_column_that_only_another_file_has_is_named_with_the_setting_of_that_file(tmp_path):
    """GLUE's SST-2 as some distribute it: the sentences are called otherwise in the test file."""
    train, test = (written(tmp_path / f"{n}.csv", f"{n},label\nx,a\ny,b\n") for n in ("sentence", "content"))
    settings = text_toys.section(train) | dict(test=test, columns=dict(text="sentence", label="label"))
    with pytest.raises(UserError, match="no column 'sentence', only 'content', 'label'; set data.test_columns"):
        labelled_text(settings, split="test", train=False)
    found = labelled_text(settings | dict(test_columns=dict(text="content", label="label")), split="test", train=False)
    assert found.source[0] == {"text": "x", "label": "a"}
    with pytest.raises(UserError, match="no column 'sentence', only 'content', 'label'; call it as in training"):
        text_rows(test, settings, ("a", "b"))
    with pytest.raises(UserError, match="no column 'body', only 'content', 'label'; set data.column$"):
        open_documents(test, column="body")
